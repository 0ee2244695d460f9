package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A deadline holds for a call under way: set before it, during it, moved, and taken back.
func TestDeadlinesOfCallsUnderWay(t *testing.T) {
	never := time.Duration(0)
	for name, k := range map[string]struct{ before, during, want time.Duration }{
		"before":     {time.Second, -1, time.Second},
		"during":     {never, 2 * time.Second, 2 * time.Second},
		"sooner":     {time.Minute, 2 * time.Second, 2 * time.Second},
		"later":      {2 * time.Second, time.Minute, time.Minute},
		"taken back": {2 * time.Second, never, never},
		"passed":     {never, time.Nanosecond, time.Second}, // set after a second
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				c, e := l.session()
				start := time.Now()
				at := func(d time.Duration) time.Time {
					if d == never {
						return time.Time{}
					}
					return start.Add(d)
				}
				c.SetDeadline(at(k.before))
				ended := make(chan error, 4)
				for range 2 {
					go func() { _, err := c.Read(make([]byte, 1)); ended <- err }()
				}
				for range 2 {
					go func() { _, err := io.Copy(onlyWriter{c}, &numbers{}); ended <- err }() // e reads nothing
				}
				time.Sleep(time.Second - time.Nanosecond)
				if k.during >= 0 {
					c.SetDeadline(at(k.during))
				}
				synctest.Wait()
				if k.want == never {
					time.Sleep(time.Hour)
					if len(ended) != 0 {
						t.Error("ended:", <-ended)
					}
					c.Reset()
					e.Reset()
					return
				}
				for range 4 {
					if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
				}
				if took := time.Since(start); took > k.want || took < k.want-time.Second {
					t.Errorf("after %v, want %v", took, k.want)
				}
				c.SetDeadline(time.Time{}) // and it goes on
				go func() { io.Copy(io.Discard, e) }()
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					t.Error("afterwards:", err)
				}
				e.Write([]byte{1})
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Error("afterwards:", err)
				}
			})
		})
	}
}

// Two writers of one session have the same deadline, also when one of them has done before.
func TestADeadlineHoldsForEachWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, _ := l.session()
		bulk, _ := l.session()
		shell, _ := l.session()
		p := l.last().out
		p.hold(true)
		go io.Copy(onlyWriter{bulk}, &numbers{})
		synctest.Wait()
		fill([]*Conn{shell})
		c.SetWriteDeadline(time.Now().Add(time.Second))
		large, little := make(chan error, 1), make(chan error, 1)
		go func() { _, err := c.Write(make([]byte, 1000)); little <- err }()
		synctest.Wait()
		go func() { _, err := c.Write(make([]byte, 100<<10)); large <- err }()
		synctest.Wait()
		if len(large)+len(little) != 0 {
			t.Fatal("somebody did not wait")
		}
		for len(little) == 0 { // room for small pieces only, a few at a time
			c.lane.mu.Lock()
			c.lane.ahead = 0 // as after a large one
			c.lane.mu.Unlock()
			p.mu.Lock()
			p.size += 8 << 10
			p.cond.Broadcast()
			p.mu.Unlock()
			synctest.Wait()
		}
		if err := <-little; err != nil {
			t.Error("the small piece:", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case err := <-large:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the large piece:", err)
			}
		default:
			t.Error("the large piece waits beyond its deadline")
		}
		for _, c := range []*Conn{c, bulk, shell} {
			c.Reset()
		}
		p.hold(false)
	})
}

// A write under way ends at its deadline and with its session, also where it is the stream that holds it up.
func TestAWriteThatTheStreamHoldsUpCanBeEnded(t *testing.T) {
	for name, end := range map[string]func(c *Conn){
		"deadline": func(c *Conn) { c.SetWriteDeadline(time.Now()) },
		"reset":    func(c *Conn) { c.Reset() },
		"close":    func(c *Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				l.size = 1 << 10
				c, e := l.session()
				defer e.Reset()
				synctest.Wait()
				l.last().out.hold(true)
				done := make(chan error, 1)
				go func() {
					var err error
					for err == nil {
						_, err = c.Write(make([]byte, 4<<10))
					}
					done <- err
				}()
				synctest.Wait()
				end(c)
				synctest.Wait() // no time passes
				if len(done) == 0 {
					t.Error("waits still")
				}
				l.last().out.hold(false)
				<-done
			})
		})
	}
}

// The ends of a session, in every order and at once: what came in order before FIN is read, a failure is never io.EOF,
// and nothing is left.
func TestEndsInEveryOrder(t *testing.T) {
	acts := map[string]func(c *Conn){
		"fin":   func(c *Conn) { c.CloseWrite() },
		"close": func(c *Conn) { c.Close() },
		"reset": func(c *Conn) { c.Reset() },
		"cut":   func(c *Conn) { c.cut(errCut) },
	}
	const size = 100_000
	for a, actA := range acts {
		for b, actB := range acts {
			for _, how := range []string{"first", "second", "at once"} {
				name := fmt.Sprintf("entry %s exit %s %s", a, b, how)
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newLab(t)
						defer l.close()
						c, e := l.session()
						ln, le := c.lane, e.lane
						for _, s := range []*Conn{c, e} {
							go io.CopyN(onlyWriter{s}, &numbers{}, size)
						}
						synctest.Wait() // each may read size bytes and then waits
						var all sync.WaitGroup
						type result struct {
							n   int64
							err error
						}
						var got [2]result
						read := func(i int, s *Conn) {
							w := &numbers{}
							_, err := io.Copy(w, onlyReader{s})
							got[i] = result{w.at, err}
						}
						all.Go(func() { read(0, c) })
						all.Go(func() { read(1, e) })
						if how != "at once" {
							synctest.Wait()
						}
						switch how {
						case "first":
							actA(c)
							synctest.Wait()
							actB(e)
						case "second":
							actB(e)
							synctest.Wait()
							actA(c)
						default:
							all.Go(func() { actA(c) })
							all.Go(func() { actB(e) })
						}
						all.Wait()
						for i, far := range []string{b, a} {
							near := []string{a, b}[i]
							g := got[i]
							switch {
							case g.err == nil && far != "fin" && far != "close":
								t.Errorf("the far side's %s seems an end", far)
							case g.err == nil && g.n != size:
								t.Errorf("the end after %d bytes", g.n)
							case near == "fin" && far == "fin" && g.err != nil:
								t.Error(g.err)
							case g.err != nil && !errors.Is(g.err, ErrReset) && !errors.Is(g.err, net.ErrClosed):
								t.Error(g.err)
							case near == "fin" && far != "fin" && far != "close" && !errors.Is(g.err, ErrReset):
								t.Error("want a reset:", g.err)
							}
						}
						c.Close()
						e.Close()
						synctest.Wait()
						if s := leftovers(ln) + leftovers(le); s != "" {
							t.Error("left:", s)
						}
						if n := l.c.mem.unread.Load() + l.e.mem.unread.Load(); n != 0 {
							t.Error("unread:", n)
						}
						time.Sleep(2 * idleLink)
						if n := len(l.c.Lanes()); n != 0 {
							t.Error("the link is not idle")
						}
					})
				})
			}
		}
	}
}

// A refusal that comes at once leaves nothing of the session behind when its user has closed it.
func TestSessionsThatAreRefusedAtOnceAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		var all sync.WaitGroup
		all.Go(func() {
			for range 500 {
				in, err := l.e.Accept(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				in.Refuse(Denied)
			}
		})
		for range 500 {
			all.Go(func() {
				c, err := l.c.Dial(t.Context(), peerE, "svc")
				if err != nil {
					t.Error(err)
					return
				}
				var no *RefusedError
				if _, err := c.Read(make([]byte, 1)); !errors.As(err, &no) {
					t.Error(err)
				}
				if rand.IntN(2) == 0 {
					c.Reset()
				}
				c.Close()
			})
		}
		all.Wait()
		synctest.Wait()
		if s := leftovers(lane0(t, l.c)) + leftovers(lane0(t, l.e)); s != "" {
			t.Error("left:", s)
		}
	})
}

// Whatever a peer says after its FIN, a reader that has been told of the end reads nothing more.
func TestNothingComesAfterAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		w := l.entryWire()
		go w.drain()
		c := l.accepted(w)
		w.say(message{muxData, muxFIN, 1, 1}, 'x')
		if b, err := io.ReadAll(c); string(b) != "x" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		w.say(message{muxData, 0, 1, 1}, 'y')
		synctest.Wait()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes after the end, and %v", n, err)
		}
	})
}

// A peer that calls off what it has just opened, with whatever code, harms nobody; of interest with -race.
func TestAnOpenThatIsCalledOffAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		w := l.entryWire()
		go w.drain()
		ctx, cancel := context.WithCancel(t.Context())
		var accepting sync.WaitGroup
		accepting.Go(func() {
			for {
				in, err := l.e.Accept(ctx)
				if err != nil {
					return
				}
				if c, err := in.Accept(); err == nil {
					c.Close()
				}
			}
		})
		for i := range uint32(300) {
			w.begin(2*i + 1)
			w.say(message{muxWindow, muxRST, 2*i + 1, refusal + uint32(Denied)})
		}
		synctest.Wait()
		if s := leftovers(lane0(t, l.e)); s != "" {
			t.Error("left:", s)
		}
		cancel()
		accepting.Wait()
	})
}

// What a peer sent in order before it called its session off is not counted for ever as unread, if nobody accepts it.
func TestWhatIsCalledOffUnacceptedHoldsNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		w := l.entryWire()
		go w.drain()
		for i := range uint32(100) {
			w.begin(2*i + 1)
			w.say(message{muxData, muxFIN, 2*i + 1, 1000}, make([]byte, 1000)...)
			w.say(message{muxWindow, muxRST, 2*i + 1, 0})
		}
		synctest.Wait()
		if n := l.e.mem.unread.Load(); n != 0 {
			t.Errorf("%d bytes are counted as unread", n)
		}
	})
}

// A session whose both directions have ended is read to its end, whatever becomes of its link.
func TestASessionThatHasEndedOutlivesItsLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		c.CloseWrite()
		said := make([]byte, 100<<10)
		if _, err := e.Write(said); err != nil {
			t.Fatal(err)
		}
		e.CloseWrite()
		synctest.Wait()
		c.AfterLoss(func(err error) { t.Error("lost:", err) })
		c.lane.link.fail(errFar, endShutdown)
		synctest.Wait()
		if b, err := io.ReadAll(c); len(b) != len(said) || err != nil {
			t.Errorf("%d of %d bytes, %v", len(b), len(said), err)
		}
	})
}

// Wishes for a better path that come often are heeded once a second all the same: one more puts none off.
func TestWishesToRenewDoNotPutOneAnotherOff(t *testing.T) {
	var w watcher
	w.kick = make(chan struct{}, 1)
	now := time.Unix(1000, 0)
	var begun int
	for range 100 { // ten seconds
		w.askRenew(now, false)
		if w.renewDue(now) {
			begun++
		}
		now = now.Add(100 * time.Millisecond)
	}
	if begun < 9 || begun > 11 {
		t.Errorf("begun %d times in ten seconds", begun)
	}
}

// atLog calls do at the first line of that text.
type atLog struct {
	slog.Handler
	text string
	do   func()
	once sync.Once
}

func (h *atLog) Enabled(context.Context, slog.Level) bool { return true }
func (h *atLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.text {
		h.once.Do(h.do)
	}
	return nil
}

// TestDialMeetsALinkThatIsEnding: it begins another.
func TestDialMeetsALinkThatIsEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *lab
		dialled := make(chan error, 1)
		// It is idle, and ends: between two of its steps somebody dials.
		ending := &atLog{Handler: slog.DiscardHandler, text: "link ended", do: func() {
			_, err := l.c.Dial(t.Context(), peerE, "svc")
			dialled <- err
		}}
		l = newLab(t, func(c, _ *Config) { c.Log = slog.New(ending) })
		defer l.close()
		c, e := l.session()
		if err := both(c, e, 100, 100); err != nil {
			t.Fatal(err)
		}
		if err := <-dialled; err != nil {
			t.Fatal(err)
		}
	})
}
