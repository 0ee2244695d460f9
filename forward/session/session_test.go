package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBytesArriveBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		if err := both(c, e, 3<<20, 5<<20); err != nil {
			t.Fatal(err)
		}
	})
}

func TestConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l := newLab(t)
		c, e := l.session()
		return c, e, func() { c.Close(); e.Close(); l.close() }, nil
	})
}

func TestExitMaySpeakFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		fmt.Fprint(e, "220 hello")
		buf := make([]byte, 9)
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "220 hello" {
			t.Fatal(string(buf), err)
		}
	})
}

// TestDialOnAnAttachedLinkCostsNoRoundTrip: OPEN and data are on their way before anything came back.
func TestDialOnAnAttachedLinkCostsNoRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.session()
		silence(l.last()) // nothing comes back any more
		start := time.Now()
		c, err := l.c.Dial(t.Context(), peerE, "svc")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1000)); err != nil || time.Since(start) != 0 {
			t.Fatal(err, time.Since(start))
		}
	})
}

func TestRefusalReachesReadAndWriteWithItsCode(t *testing.T) {
	for _, code := range []Code{Denied, Refused, Timeout, Overload} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			defer l.close()
			c, err := l.c.Dial(t.Context(), peerE, "nas")
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("early data"))
			in, _ := l.e.Accept(t.Context())
			in.Refuse(code)
			_, err = c.Read(make([]byte, 1))
			var no *RefusedError
			if !errors.As(err, &no) || no.Code != code || no.Service != "nas" {
				t.Fatal(err)
			}
			if _, err = c.Write([]byte("x")); !errors.As(err, &no) {
				t.Fatal("write:", err)
			}
		})
	}
}

func TestResetIsNeverAnEnd(t *testing.T) {
	for _, side := range []string{"entry", "exit"} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			defer l.close()
			a, b := l.session()
			if side == "exit" {
				a, b = b, a
			}
			a.Write([]byte("abc"))
			a.Reset()
			_, err := io.ReadAll(b)
			if !errors.Is(err, ErrReset) {
				t.Fatal(err)
			}
			if _, err := b.Write([]byte("x")); !errors.Is(err, ErrReset) {
				t.Fatal(err)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
		})
	}
}

// TestCloseDeliversWhatWasWritten, and then resets a far side that goes on sending.
func TestCloseDeliversWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		c.Write([]byte("last words"))
		c.Close()
		got, err := io.ReadAll(e)
		if string(got) != "last words" || err != nil {
			t.Fatal(string(got), err)
		}
		e.Write([]byte("still there?"))
		synctest.Wait()
		if _, err := e.Write([]byte("hello?")); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
	})
}

// TestHalfClose: who ends first × how much comes after × when the path is cut.
func TestHalfClose(t *testing.T) {
	for _, first := range []string{"entry", "exit", "both"} {
		for _, after := range []int64{0, 1, 4 << 20} {
			for _, cut := range []string{"never", "before", "after", "detached"} {
				t.Run(fmt.Sprintf("%s/%d/%s", first, after, cut), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newLab(t)
						defer l.close()
						c, e := l.session()
						if first == "exit" {
							c, e = e, c
						}
						c.Write([]byte("request"))
						if cut == "before" {
							l.last().Reset()
						}
						if cut == "detached" {
							l.block(true)
							l.last().Reset()
							synctest.Wait()
						}
						c.CloseWrite()
						if cut == "after" {
							l.last().Reset()
						}
						if cut == "detached" {
							time.Sleep(time.Hour)
							l.block(false)
						}
						if first == "both" {
							e.CloseWrite()
						}
						got, err := io.ReadAll(e)
						if err != nil || string(got) != "request" {
							t.Fatal(string(got), err)
						}
						if first == "both" {
							if err := receive(c, 0); err != nil {
								t.Fatal(err)
							}
							return
						}
						go send(e, after)
						if err := receive(c, after); err != nil {
							t.Fatal(err)
						}
					})
				})
			}
		}
	}
}

// block makes all opens fail, or lets them succeed again.
func (l *lab) block(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = nil
	if yes {
		l.open = func(context.Context, int, Want) (*end, error) { return nil, errors.New("no path") }
	}
}

// TestWriterThatReadsNothingYet is the classic deadlock: each side writes all before it reads.
func TestWriterThatReadsNothingYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(c, e *Config) { c.Budget, e.Budget = 1, 1 }) // rings at their least
		l.size = 4 << 10
		defer l.close()
		c, e := l.session()
		// A kernel's socket holds some; so does a session: 256 KiB window. Up to that much nobody has to read.
		var wg sync.WaitGroup
		wg.Go(func() { c.Write(make([]byte, 255<<10)); c.CloseWrite() })
		wg.Go(func() { e.Write(make([]byte, 255<<10)); e.CloseWrite() })
		wg.Wait()
		// Beyond, the far side must read, which must not need anything but its own reading.
		for _, s := range []*Conn{c, e} {
			if _, err := io.Copy(io.Discard, s); err != nil {
				t.Fatal(err)
			}
		}
		c, e = l.session()
		go send(c, 20<<20)
		time.Sleep(time.Second) // C's writer is stuck
		go send(e, 1<<20)
		if err := receive(c, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := receive(e, 20<<20); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSlowReaderStopsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		stuck, _ := l.session()
		go stuck.Write(make([]byte, 64<<20)) // nobody reads
		synctest.Wait()
		for range 10 {
			c, e := l.session()
			if err := both(c, e, 1<<20, 1<<20); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestManySessionsSurviveOneCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		var wg sync.WaitGroup
		for range 200 {
			c, e := l.session()
			wg.Go(func() {
				for range 20 {
					c.Write([]byte("ping"))
					buf := make([]byte, 4)
					if _, err := io.ReadFull(e, buf); err != nil || string(buf) != "ping" {
						t.Error(err)
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		for range 10 {
			time.Sleep(150 * time.Millisecond)
			l.last().Reset()
		}
		wg.Wait()
	})
}

// TestSilentPathIsReplacedByTwoSeconds, and what was sent into the silence arrives.
func TestSilentPathIsReplacedByTwoSeconds(t *testing.T) {
	for _, sender := range []string{"entry", "exit"} {
		t.Run(sender, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				a, b := l.session()
				if sender == "exit" {
					a, b = b, a
				}
				a.Write([]byte("x"))
				io.ReadFull(b, make([]byte, 1))
				time.Sleep(5 * time.Second)
				old := l.last()
				var avoided Stream
				l.open = func(_ context.Context, n int, want Want) (*end, error) {
					if want.Silent {
						avoided = want.Now
					}
					return l.pair(), nil
				}
				silence(old)
				start := time.Now()
				a.Write([]byte("y"))
				io.ReadFull(b, make([]byte, 1))
				limit := 2 * time.Second
				if sender == "exit" {
					limit = 4 * time.Second // the entry notices by its probe, thinned out after 5 s; unless it is nudged
				}
				if took := time.Since(start); took > limit {
					t.Fatal("took", took)
				}
				if avoided != Stream(old) {
					t.Fatal("Open was not told which path to avoid")
				}
			})
		})
	}
}

func TestIdleSilenceIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.session()
		time.Sleep(10 * time.Minute)
		if n := l.opened(); n != 1 {
			t.Fatal("an idle healthy path was replaced", n)
		}
		silence(l.last())
		time.Sleep(18 * time.Second)
		if n := l.opened(); n != 2 {
			t.Fatal("streams:", n)
		}
	})
}

// TestPathThatSpeaksAgainIsKept: the search for another is called off.
func TestPathThatSpeaksAgainIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		old := l.last()
		l.open = func(ctx context.Context, n int, want Want) (*end, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		// The path holds everything back, both ways, for 3 s.
		for _, p := range []*pipe{old.in, old.out} {
			p.mu.Lock()
			p.held = true
			p.mu.Unlock()
		}
		c.Write([]byte("x"))
		time.Sleep(3 * time.Second)
		if l.opened() != 2 || l.c.Lanes()[0].State != "suspect" {
			t.Fatal("no search:", l.opened(), l.c.Lanes())
		}
		for _, p := range []*pipe{old.in, old.out} {
			p.mu.Lock()
			p.held = false
			p.cond.Broadcast()
			p.mu.Unlock()
		}
		io.ReadFull(e, make([]byte, 1))
		time.Sleep(time.Second)
		if i := l.c.Lanes()[0]; i.State != "open" || i.Migrations != 0 {
			t.Fatal(i)
		}
	})
}

func TestRenewMovesWithoutLosingAnything(t *testing.T) {
	for _, side := range []string{"entry", "exit"} {
		t.Run(side, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				c, e := l.session()
				done := make(chan error)
				go func() { done <- both(c, e, 8<<20, 8<<20) }()
				for range 20 {
					if side == "entry" {
						l.c.Renew(peerE)
						time.Sleep(10 * time.Millisecond)
					} else {
						l.e.Renew(peerC)
						time.Sleep(2 * time.Second)
					}
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if n := l.opened(); n < 20 {
					t.Fatal("only", n, "streams")
				}
			})
		})
	}
}

// TestRenewOntoADeadPathDoesNoHarm: it is found out before the lane is frozen.
func TestRenewOntoADeadPathDoesNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		l.open = func(context.Context, int, Want) (*end, error) {
			a, _ := streamPair(1 << 20)
			silence(a)
			return a, nil
		}
		l.c.Renew(peerE)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			start := time.Now()
			e.Write([]byte("x"))
			io.ReadFull(c, make([]byte, 1))
			if took := time.Since(start); took > 0 {
				t.Fatal("stalled for", took)
			}
		}
	})
}

func TestDialWaitsForAPathUntilItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.block(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := l.c.Dial(ctx, peerE, "svc"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		go func() { time.Sleep(time.Hour); l.block(false); l.c.Renew(peerE) }()
		start := time.Now()
		if _, err := l.c.Dial(t.Context(), peerE, "svc"); err != nil || time.Since(start) != time.Hour {
			t.Fatal(err, time.Since(start))
		}
	})
}

func TestRetriesBackOffToFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.session()
		l.block(true)
		l.last().Reset()
		before := l.opened()
		time.Sleep(10 * time.Minute)
		if n := l.opened() - before; n < 600/7 || n > 600/3+10 {
			t.Fatal("tries in ten minutes:", n)
		}
	})
}

func TestHoldLimit(t *testing.T) {
	for _, within := range []bool{true, false} {
		t.Run(fmt.Sprint(within), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, func(c, e *Config) { c.Hold, e.Hold = time.Hour, time.Hour })
				defer l.close()
				c, e := l.session()
				l.block(true)
				l.last().Reset()
				c.Write([]byte("x"))
				e.Write([]byte("y"))
				if within {
					time.Sleep(time.Hour - 10*time.Second)
					l.block(false)
					go c.CloseWrite()
					go e.CloseWrite()
					a, err := io.ReadAll(e)
					b, err2 := io.ReadAll(c)
					if string(a)+string(b) != "xy" || err != nil || err2 != nil {
						t.Fatal(string(a), string(b), err, err2)
					}
					return
				}
				time.Sleep(time.Hour + 5*time.Second)
				for _, s := range []*Conn{c, e} {
					if _, err := io.ReadAll(s); !errors.Is(err, ErrReset) {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// TestPeerRestartResetsAtOnce: of the exit, at the next attach; of the entry, when its new self attaches.
func TestPeerRestartResetsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		other := newLab(t)
		defer other.close()
		l.open = func(context.Context, int, Want) (*end, error) { return other.pair(), nil } // E anew
		l.last().Reset()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
		third := newLab(t)
		defer third.close()
		third.open = func(context.Context, int, Want) (*end, error) { return l.pair(), nil } // C anew
		go third.c.Dial(t.Context(), peerE, "svc")
		if _, err := e.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
	})
}

func TestShutdownTellsThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c := New(Config{Self: peerC, Open: l.Open, Now: time.Now})
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- c.Serve(ctx) }()
		s, err := c.Dial(t.Context(), peerE, "svc")
		if err != nil {
			t.Fatal(err)
		}
		in, _ := l.e.Accept(t.Context())
		e, _ := in.Accept()
		start := time.Now()
		cancel()
		if _, err := e.Read(make([]byte, 1)); !errors.Is(err, ErrReset) || time.Since(start) > time.Second {
			t.Fatal(err, time.Since(start))
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
		if err := <-served; err != nil {
			t.Error("an end in order is told as", err)
		}
	})
}

func TestIdleLinkClosesAndHoldsNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		if err := both(c, e, 1<<20, 1<<20); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, i := range append(l.c.Lanes(), l.e.Lanes()...) {
			if i.Memory != 0 || i.Unacked != 0 {
				t.Fatal("an idle lane holds", i)
			}
		}
		if l.c.mem.windows != 0 || l.e.mem.windows != 0 {
			t.Fatal("windows promised:", l.c.mem.windows, l.e.mem.windows)
		}
		time.Sleep(idleLink + time.Second)
		if a, b := l.c.Lanes(), l.e.Lanes(); len(a)+len(b) != 0 {
			t.Fatal(a, b)
		}
		l.session() // and again
	})
}

func TestShellDoesNotShareALaneWithBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		go func() { send(c, 1<<30) }()
		go io.Copy(io.Discard, io.LimitReader(e, 32<<20)) // then it stalls, in mid-transfer
		time.Sleep(time.Second)
		shell, _ := l.session()
		if shell.lane == c.lane {
			t.Fatal("same lane")
		}
		again, _ := l.session()
		if again.lane == c.lane {
			t.Fatal("same lane")
		}
		if n := len(l.c.Lanes()); n != 2 {
			t.Fatal("lanes:", n)
		}
		c.Reset()
		e.Reset()
	})
}

func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		other, err := l.c.Dial(t.Context(), peerE, "other")
		if err != nil {
			t.Fatal(err)
		}
		in, _ := l.e.Accept(t.Context())
		kept, _ := in.Accept()
		why := errors.New("denied now")
		l.e.Cut(func(p peer.ID, service, role string) bool { return p == peerC && service == "svc" && role == "exit" }, why)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
		if _, err := e.Read(make([]byte, 1)); !errors.Is(err, ErrReset) || !errors.Is(err, why) {
			t.Fatal(err)
		}
		kept.Write([]byte("x"))
		if _, err := other.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.deny = why
		l.mu.Unlock()
		start := time.Now()
		l.e.Cut(func(p peer.ID, service, role string) bool { return p == peerC }, why)
		for _, s := range []*Conn{other, kept} {
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took > time.Second {
			t.Fatal("took", took)
		}
		var no *RefusedError
		if _, err := l.c.Dial(t.Context(), peerE, "svc"); !errors.As(err, &no) || no.Code != Denied {
			t.Fatal(err)
		}
	})
}

func TestSessionsTellTheirState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		c.Write([]byte("12345"))
		io.ReadFull(e, make([]byte, 5))
		l.last().Reset()
		time.Sleep(time.Second)
		a, b := l.c.Sessions()[0], l.e.Sessions()[0]
		if a.ID != b.ID || a.Role != "entry" || b.Role != "exit" || a.Sent != 5 || b.Received != 5 || a.State != "open" || a.Migrations != 1 || b.Migrations != 1 {
			t.Fatal(a, b)
		}
		l.block(true)
		l.last().Reset()
		time.Sleep(time.Minute)
		a = l.c.Sessions()[0]
		if a.State != "detached" || time.Since(a.Since) != time.Minute {
			t.Fatal(a)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, _ := l.session()
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

func TestBootClockRuns(t *testing.T) {
	a := bootClock()
	if b := bootClock(); b.Before(a) || a.IsZero() {
		t.Fatal(a, b)
	}
}

// The exit has read the end of the entry's direction and waits for its target, which is silent: it neither reads nor
// writes when the entry gives up.
func TestAResetOfAHalfClosedSessionIsToldToWhoOnlyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		lossOf := func(c *Conn) <-chan error {
			told := make(chan error, 1)
			c.AfterLoss(func(err error) { told <- err })
			return told
		}
		for _, end := range []struct {
			how  string
			of   func(near, far *Conn)
			want error
		}{
			{"reset by the far side", func(near, far *Conn) { near.Reset() }, ErrReset},
			{"cut here", func(near, far *Conn) { l.e.End(far.id.String(), errFar); l.c.End(far.id.String(), errFar) }, errFar},
		} {
			for _, byEntry := range []bool{true, false} {
				near, far := l.session()
				if !byEntry {
					near, far = far, near
				}
				near.CloseWrite()
				if n, err := io.Copy(io.Discard, far); n != 0 || err != nil {
					t.Fatal(n, err)
				}
				told := lossOf(far)
				synctest.Wait()
				end.of(near, far)
				synctest.Wait()
				select {
				case err := <-told:
					if !errors.Is(err, end.want) || !errors.Is(err, ErrReset) {
						t.Errorf("%s: told %v", end.how, err)
					}
				default:
					t.Errorf("%s: not told", end.how)
				}
				if c, e := l.c.Sessions(), l.e.Sessions(); len(c)+len(e) != 0 {
					t.Errorf("%s: sessions are left: %v %v", end.how, c, e)
				}
				if err := <-lossOf(far); !errors.Is(err, end.want) {
					t.Errorf("%s: told %v to who asks late", end.how, err)
				}
			}
		}
		near, far := l.session()
		near.CloseWrite()
		told := lossOf(far)
		stopped := lossOf(near)
		if stop := near.AfterLoss(func(err error) { t.Error("told who does not ask any more") }); !stop() {
			t.Error("nothing to stop")
		}
		go l.c.Cut(func(peer.ID, string, string) bool { return true }, errFar)
		if err := <-told; !errors.Is(err, ErrReset) {
			t.Errorf("the link's end: told %v", err)
		}
		if len(stopped) != 0 {
			t.Error("told twice")
		}
	})
}
