package portmap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// router answers as answer says, on loopback, until the test ends.
func router(t *testing.T, answer func([]byte) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, largest)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if a := answer(b[:n]); a != nil {
				c.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-over })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

var wan = netip.MustParseAddr("7.0.0.1")

// pcpRouter gives port 30000 whatever is asked for, for life; result is its result code.
func pcpRouter(life uint32, result byte) func([]byte) []byte {
	return func(b []byte) []byte {
		if b[0] != pcpVersion {
			return nil
		}
		a := bytes.Clone(b)
		a[1] |= isAnswer
		a[3] = result
		clear(a[8:24])
		if b[1] == opMap {
			if binary.BigEndian.Uint32(b[4:]) != 0 {
				binary.BigEndian.PutUint32(a[4:], life)
			}
			binary.BigEndian.PutUint16(a[42:], 30000)
			ip := wan.As16()
			copy(a[44:], ip[:])
		}
		return a
	}
}

// olderRouter is the same by NAT-PMP.
func olderRouter(life uint32) func([]byte) []byte {
	return func(b []byte) []byte {
		switch {
		case b[0] != 0:
			return []byte{0, isAnswer | b[1], 0, 1}
		case b[1] == 0:
			return append([]byte{0, isAnswer, 0, 0, 0, 0, 0, 1}, wan.AsSlice()...)
		}
		a := append([]byte{0, isAnswer | b[1], 0, 0, 0, 0, 0, 1}, b[4:6]...)
		a = binary.BigEndian.AppendUint16(a, 30000)
		return binary.BigEndian.AppendUint32(a, life)
	}
}

func find(t *testing.T, at netip.AddrPort) *Router {
	t.Helper()
	r, err := FindAt(t.Context(), at, Nonce{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestThePortIsTheOneThatTheRouterGave(t *testing.T) {
	for protocol, answer := range map[string]func([]byte) []byte{"PCP": pcpRouter(120, 0), "NAT-PMP": olderRouter(120)} {
		r := find(t, router(t, answer))
		if r.Protocol() != protocol {
			t.Errorf("%s taken for %s", protocol, r.Protocol())
		}
		for _, p := range []Port{{UDP, 4001}, {TCP, 4001}} {
			m, err := r.Map(t.Context(), p, netip.AddrPort{})
			if want := netip.AddrPortFrom(wan, 30000); err != nil || m.External != want || m.Life != 2*time.Minute {
				t.Errorf("%s by %s: %+v, %v; want %v", p, protocol, m, err, want)
			}
		}
	}
}

func TestPCPIsPreferredWhereBothAreSpoken(t *testing.T) {
	pcp, older := pcpRouter(120, 0), olderRouter(120)
	at := router(t, func(b []byte) []byte {
		if b[0] == 0 {
			return older(b)
		}
		return pcp(b)
	})
	if r := find(t, at); r.Protocol() != "PCP" {
		t.Errorf("took %s", r.Protocol())
	}
}

func TestASilentRouterIsGivenUpSoon(t *testing.T) {
	began := time.Now()
	_, err := FindAt(t.Context(), router(t, func([]byte) []byte { return nil }), Nonce{})
	if took := time.Since(began); !errors.Is(err, ErrSilent) || took < firstWait*7 {
		t.Errorf("%v after %v", err, took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FindAt(ctx, router(t, func([]byte) []byte { return nil }), Nonce{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestARefusalSaysWhy(t *testing.T) {
	r := find(t, router(t, pcpRouter(0, 12)))
	_, err := r.Map(t.Context(), Port{UDP, 4001}, netip.AddrPort{})
	if err == nil || !strings.Contains(err.Error(), "another NAT") || !strings.Contains(err.Error(), "UDP 4001 by PCP at the router 127.0.0.1") {
		t.Errorf("%v", err)
	}
}

func TestKeeperGivesBackWhatItOpened(t *testing.T) {
	asked := make(chan uint32, 100) // life times
	at := router(t, func(b []byte) []byte {
		if b[0] == pcpVersion && b[1] == opMap {
			asked <- binary.BigEndian.Uint32(b[4:])
		}
		return pcpRouter(120, 0)(b)
	})
	p := Port{UDP, 4001}
	k := NewKeeper(find(t, at), func() []Port { return []Port{p} })
	ctx, cancel := context.WithCancel(t.Context())
	opened, over := make(chan struct{}, 1), make(chan error, 1)
	go func() { over <- k.Run(ctx, nil, func() { opened <- struct{}{} }) }()
	<-opened
	if a, ok := k.External(p); !ok || a != netip.AddrPortFrom(wan, 30000) {
		t.Errorf("%v, %v", a, ok)
	}
	if _, ok := k.External(Port{TCP, 4001}); ok {
		t.Error("a port is open that nobody asked for")
	}
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	first := <-asked
	last := first
	for last == first { // a request that was not answered in 250 ms is sent again
		last = <-asked
	}
	if first != 120 || last != 0 {
		t.Errorf("asked for %d s, then %d s; want 120 and 0", first, last)
	}
	if _, ok := k.External(p); ok {
		t.Error("still open")
	}
}

func TestKeeperClosesWhatIsNoLongerWanted(t *testing.T) {
	var returned atomic.Bool
	at := router(t, func(b []byte) []byte {
		if b[0] == pcpVersion && b[1] == opMap && binary.BigEndian.Uint32(b[4:]) == 0 {
			returned.Store(true)
		}
		return pcpRouter(120, 0)(b)
	})
	wanted := []Port{{UDP, 4001}}
	k := NewKeeper(find(t, at), func() []Port { return wanted })
	changes := 0
	for range 2 {
		if _, err := k.round(t.Context(), func() { changes++ }); err != nil {
			t.Fatal(err)
		}
		wanted = nil
	}
	if !returned.Load() || changes != 2 {
		t.Errorf("returned %v, told of %d changes", returned.Load(), changes)
	}
}

func TestKeeperTellsTheRoutersNewAddress(t *testing.T) {
	var moved atomic.Bool
	at := router(t, func(b []byte) []byte {
		a := pcpRouter(120, 0)(b)
		if moved.Load() && len(a) == pcpHeader+pcpMapping {
			a[59] = 2
		}
		return a
	})
	p := Port{UDP, 4001}
	k := NewKeeper(find(t, at), func() []Port { return []Port{p} })
	ctx, cancel := context.WithCancel(t.Context())
	again, told, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { over <- k.Run(ctx, again, func() { told <- struct{}{} }) }()
	<-told
	moved.Store(true)
	again <- struct{}{}
	<-told
	if a, ok := k.External(p); !ok || a.Addr() != wan.Next() {
		t.Errorf("%v, %v", a, ok)
	}
	cancel()
	<-over
}

func TestKeeperEndsWhereTheRouterHasNoAddressOfItsOwn(t *testing.T) {
	at := router(t, func(b []byte) []byte {
		a := pcpRouter(120, 0)(b)
		if len(a) == pcpHeader+pcpMapping {
			copy(a[56:], []byte{0, 0, 0, 0})
		}
		return a
	})
	k := NewKeeper(find(t, at), func() []Port { return []Port{{UDP, 4001}} })
	if err := k.Run(t.Context(), nil, func() {}); err == nil || !strings.Contains(err.Error(), "no external address") {
		t.Errorf("%v", err)
	}
}

func FuzzAnswers(f *testing.F) {
	own := netip.MustParseAddr("192.168.0.2")
	nonce, p := Nonce{1}, Port{UDP, 4001}
	request := mapRequest(own, nonce, p, netip.AddrPortFrom(own, 1), life)
	f.Add(pcpRouter(120, 0)(request))
	f.Add(olderRouter(120)(olderRequest(p, 1, life)))
	f.Add(olderRouter(120)(addressRequest))
	f.Add([]byte{0, 128, 0, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMap(b, nonce, p); err == nil && !isPCP(b) {
			t.Errorf("%+v of what is no PCP", m)
		}
		if a, err := parseAddress(b); err == nil && !a.Is4() {
			t.Errorf("address %v", a)
		}
		if m, err := parseOlderMap(b, p); err == nil && m.Life < 0 {
			t.Errorf("%+v", m)
		}
	})
}
