package session

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A download: the entry, which alone can attach, sends nothing that could be missed.
func TestEntryNoticesThatADownloadHasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		arrived := make(chan time.Time, 1)
		l.done.Go(func() {
			b := make([]byte, 100)
			for {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				if b[0] == 1 {
					arrived <- time.Now()
				}
			}
		})
		for i := range 5 {
			// The phase of the watch's looks must not matter.
			for end := time.Now().Add(10*time.Second + time.Duration(i)*110*time.Millisecond); time.Now().Before(end); {
				e.Write(make([]byte, 100)) // little enough for one lane
				time.Sleep(10 * time.Millisecond)
			}
			silence(l.last())
			start := time.Now()
			e.Write(append([]byte{1}, make([]byte, 99)...))
			if took := (<-arrived).Sub(start); took > 2200*time.Millisecond {
				t.Error("took", took)
			}
			time.Sleep(10 * time.Second)
		}
		e.Close()
		c.Close()
		if n := l.opened(); n != 6 {
			t.Error("streams", n)
		}
	})
}

// What has stopped for good reason is asked about less and less often.
func TestProbesThinOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		e.Write([]byte("x"))
		io.ReadFull(c, make([]byte, 1))
		counts := []uint64{}
		for _, d := range []time.Duration{10 * time.Second, 50 * time.Second, 10 * time.Minute} {
			time.Sleep(d)
			lane := l.c.links()[0].lane(0)
			lane.mu.Lock()
			counts = append(counts, lane.cur.pings)
			lane.mu.Unlock()
		}
		if counts[0] > 10 || counts[1]-counts[0] > 20 || counts[2]-counts[1] > 42 || l.opened() != 1 {
			t.Fatal(counts, l.opened())
		}
	})
}

func TestExitTellsOfASilentStreamOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := []Stream{}
		var l *lab
		l = newLab(t, func(c, e *Config) {
			e.Silent = func(p peer.ID, s Stream) {
				if p != peerC {
					t.Error(p)
				}
				told = append(told, s)
				l.c.Probe(peerE) // what a nudge leads to
			}
		})
		defer l.close()
		c, e := l.session()
		time.Sleep(2 * time.Minute) // idle: the entry asks every 15 s
		silence(l.last())
		start := time.Now()
		e.Write([]byte("x"))
		io.ReadFull(c, make([]byte, 1))
		if took := time.Since(start); took > 2500*time.Millisecond {
			t.Error("took", took)
		}
		if len(told) != 1 {
			t.Error("told", len(told))
		}
	})
}

func TestServicesHoldIsShorterThanTheLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(_, e *Config) {
			e.HoldFor = func(service string) time.Duration {
				if service == "svc" {
					return time.Minute
				}
				return 0
			}
		})
		defer l.close()
		c, e := l.session()
		l.lose(peerE)
		l.last().Reset()
		time.Sleep(59 * time.Second)
		if is := l.e.Sessions(); len(is) != 1 || is[0].Until.Sub(is[0].Since) != time.Minute {
			t.Fatal("gone too early, or it does not tell", is)
		}
		time.Sleep(2 * time.Second)
		if _, err := e.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal("held", err)
		}
		// The other end learns it when there is a path again.
		l.lose("")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal("told", err)
		}
	})
}

func TestEndResetsThatSessionAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c1, e1 := l.session()
		c2, e2 := l.session()
		if l.c.End("nonsense", errors.New("x")) {
			t.Error("ended what is not there")
		}
		if !l.c.End(c1.Info().ID, errors.New("x")) {
			t.Error("not found")
		}
		if _, err := e1.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Error(err)
		}
		if err := both(c2, e2, 100, 100); err != nil {
			t.Error(err)
		}
	})
}

// TestNoRenewalHidesThatThePathIsDead: whatever the better path hangs in, and however the one in use ends meanwhile.
func TestNoRenewalHidesThatThePathIsDead(t *testing.T) {
	for _, hangs := range []string{"open", "check"} {
		for _, dies := range []string{"silent", "reset"} {
			t.Run(hangs+"/"+dies, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var told atomic.Int32
					l := newLab(t, func(c, _ *Config) { c.Silent = func(peer.ID, Stream) { told.Add(1) } })
					defer l.close()
					c, e := l.session()
					first := l.last()
					l.mu.Lock()
					l.open = func(ctx context.Context, n int, want Want) (*end, error) {
						better := want.Now != nil && !want.Silent
						if better && hangs == "open" {
							<-ctx.Done()
							return nil, ctx.Err()
						}
						s := l.pair()
						if better {
							silence(s)
						}
						return s, nil
					}
					l.mu.Unlock()
					flow := func(from, to *Conn) (worst func() time.Duration) {
						const pace, pieces = 10 * time.Millisecond, 1000
						l.done.Go(func() {
							for range pieces {
								from.Write(make([]byte, 100))
								time.Sleep(pace)
							}
							from.CloseWrite()
						})
						took := make(chan time.Duration, 1)
						l.done.Go(func() {
							var worst time.Duration
							for last := time.Now(); ; last = time.Now() {
								_, err := to.Read(make([]byte, 64<<10))
								worst = max(worst, time.Since(last))
								if err == io.EOF {
									break
								} else if err != nil {
									t.Error(err)
									break
								}
							}
							took <- worst
						})
						return func() time.Duration { return <-took }
					}
					up, down := flow(c, e), flow(e, c)
					time.Sleep(time.Second)
					l.c.Renew(peerE)
					time.Sleep(300 * time.Millisecond)
					if dies == "silent" {
						silence(first)
					} else {
						first.Reset()
					}
					if up, down := up(), down(); max(up, down) > 1500*time.Millisecond {
						t.Errorf("up stalled for %v, down for %v", up, down)
					}
					// The better path had a second to answer in one of the cases alone.
					if blamed := told.Load() > 0; blamed != (hangs == "check" && dies == "silent") {
						t.Errorf("the better path was called silent: %v", blamed)
					}
				})
			})
		}
	}
}
