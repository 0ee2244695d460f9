package forward

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// visits is a listener to which connections are handed.
type visits struct {
	from   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newVisits() *visits { return &visits{from: make(chan net.Conn, 100), closed: make(chan struct{})} }

func (l *visits) Accept() (net.Conn, error) {
	select {
	case c := <-l.from:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *visits) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *visits) Addr() net.Addr { return memAddr{} }

// A visitor is a connection from an address.
type visitor struct {
	*memConn
	addr *net.TCPAddr
}

func (v visitor) RemoteAddr() net.Addr { return v.addr }

// visit connects from an address and returns the visitor's end.
func (l *visits) visit(ip string) *memConn {
	near, far := newMemPair()
	l.from <- visitor{near, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}
	return far
}

// newServed is an entry to sessions that do nothing; dialled counts them.
func newServed(t *testing.T, room *Room, log *slog.Logger) (l *visits, dialled func() int) {
	l = newVisits()
	var mu sync.Mutex
	n := 0
	entry := &Entry{Listener: l, Room: room, Log: log, Dial: func(context.Context) (Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		near, _ := newMemPair()
		return near, nil
	}}
	serve(t, entry.Serve)
	return l, func() int {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

func TestWhereThereIsNoRoomVisitorsWaitAndAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		room := NewRoom(10, 0)
		a, dialledA := newServed(t, room, slog.New(slog.NewTextHandler(&log, nil)))
		b, dialledB := newServed(t, room, nil)
		dialled := func() int { return dialledA() + dialledB() }
		var served []*memConn
		for range 50 {
			served = append(served, a.visit("192.0.2.1"))
		}
		if n := dialled(); n != 10 {
			t.Errorf("%d sessions were dialled for 50 visitors, with room for 10", n)
		}
		served[3].Reset()
		if n := dialled(); n != 11 {
			t.Errorf("%d sessions were dialled after one has ended", n)
		}
		b.visit("192.0.2.2")
		if n := dialled(); n != 11 {
			t.Errorf("%d sessions were dialled: another entry has no room of its own", n)
		}
		for _, c := range served {
			c.Reset()
		}
		if n := dialled(); n != 51 {
			t.Errorf("%d sessions were dialled in the end, for 51 visitors", n)
		}
		time.Sleep(5 * time.Second)
		if n := strings.Count(log.String(), "too many connections"); n == 0 || n > 2 {
			t.Errorf("%d lines in the log:\n%s", n, log.String())
		}
	})
}

func TestOneAddressLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dialled := newServed(t, NewRoom(10, 4), nil)
		var first, last *memConn
		for i := range 20 { // of one network
			last = l.visit("2001:db8::" + string(rune('a'+i%6)))
			if i == 0 {
				first = last
			}
		}
		if n := dialled(); n != 4 {
			t.Errorf("%d sessions of one address, which may have 4", n)
		}
		if _, err := last.Read(make([]byte, 1)); err != errReset {
			t.Errorf("one too many ended with %v, want a reset", err)
		}
		l.visit("192.0.2.7")
		if n := dialled(); n != 5 {
			t.Error("another address is not served")
		}
		first.Reset()
		synctest.Wait()
		l.visit("2001:db8::1")
		if n := dialled(); n != 6 {
			t.Error("the place of one that has ended is not free again")
		}
	})
}

func TestAnEntryThatWaitsForRoomEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := NewRoom(1, 1)
		l := newVisits()
		entry := &Entry{Listener: l, Room: room, Dial: func(context.Context) (Conn, error) {
			near, _ := newMemPair()
			return near, nil
		}}
		stop := serve(t, entry.Serve)
		l.visit("192.0.2.1")
		waits := l.visit("192.0.2.2")
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if _, err := waits.Read(make([]byte, 1)); err != errReset {
			t.Errorf("the one that waited ended with %v, want a reset", err)
		}
		if len(room.places) != 0 || len(room.by) != 0 {
			t.Errorf("%d places are taken by nobody, %d addresses count", len(room.places), len(room.by))
		}
	})
}
