package session

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestUnreadBytesAreBoundedAndTheHoardersPay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(c, e *Config) { e.Budget = 1 << 20 })
		defer l.close()
		shell, far := l.session()
		var writing sync.WaitGroup
		defer writing.Wait()
		var readers []*Conn
		for range 2 * unreadLeast / firstWindow {
			c, e := l.session()
			readers = append(readers, e) // reads nothing
			defer c.Reset()
			writing.Go(func() { c.Write(make([]byte, 4*firstWindow)) })
		}
		synctest.Wait()
		if n := l.e.mem.unread.Load(); n > unreadLeast || n < unreadLeast/2 {
			t.Errorf("%d bytes unread, at most %d", n, int64(unreadLeast))
		}
		reset := 0
		for _, e := range readers {
			if e.unread() == 0 {
				if _, err := io.ReadFull(e, make([]byte, 8*firstWindow)); err == nil {
					t.Error("a session that was reset goes on")
				}
				reset++
			}
		}
		if reset == 0 || reset > 3*len(readers)/4 {
			t.Errorf("%d of %d were reset", reset, len(readers))
		}
		move(t, shell, far, 1000)
	})
}

// The account is exact: where everything has been read nothing is left of it.
func TestWhatWasReadIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		for range 5 {
			c, e := l.session()
			if err := both(c, e, 3<<20, 1<<20); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if c, e := l.c.mem.unread.Load(), l.e.mem.unread.Load(); c != 0 || e != 0 {
				t.Errorf("%d and %d bytes seem to be unread", c, e)
			}
		}
	})
}

// Many small hoards of one peer cost another peer nothing.
func TestThePeerThatHoldsMostPaysAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(c, e *Config) { e.Budget = 1 << 20 })
		defer l.close()
		const much, little = 60 << 10, 32 << 10
		c, e := l.session()
		c.Write(make([]byte, much)) // more than any one session of the other peer

		var ending sync.WaitGroup
		defer ending.Wait()
		hoarder := New(Config{Self: "hoarder", Now: time.Now, Open: func(context.Context, peer.ID, Want) (Stream, error) {
			a, b := streamPair(l.size)
			l.done.Go(func() { l.e.Handle("hoarder", b) })
			return a, nil
		}})
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		ending.Go(func() { hoarder.Serve(ctx) })
		const sessions = unreadLeast/little + 50
		for range sessions {
			h, err := hoarder.Dial(ctx, peerE, "svc")
			if err != nil {
				t.Fatal(err)
			}
			in, err := l.e.Accept(ctx)
			if err != nil {
				t.Fatal(err)
			}
			in.Accept()
			h.Write(make([]byte, little))
		}
		synctest.Wait()
		if n := l.e.mem.unread.Load(); n > unreadLeast {
			t.Errorf("%d bytes unread, at most %d", n, int64(unreadLeast))
		}
		if left := len(l.e.Sessions()) - 1; left >= sessions || left < sessions/2 {
			t.Errorf("of %d sessions that nobody reads %d are left", sessions, left)
		}
		if _, err := io.ReadFull(e, make([]byte, much)); err != nil {
			t.Error("the session of the peer that holds little:", err)
		}
	})
}
