package session

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
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
