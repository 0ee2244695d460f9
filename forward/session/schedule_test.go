package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestCutAtEveryByte breaks the first stream, or the second, after every possible number of bytes either way, attach included.
func TestCutAtEveryByte(t *testing.T) {
	for _, which := range []int{0, 1} {
		for _, way := range []string{"to exit", "to entry"} {
			t.Run(fmt.Sprint(which, way), func(t *testing.T) {
				for at := int64(0); ; at++ {
					reached := false
					synctest.Test(t, func(t *testing.T) {
						l := newLab(t)
						defer l.close()
						var cut *pipe
						l.open = func(_ context.Context, n int, _ Want) (*end, error) {
							s := l.pair()
							switch {
							case n == which && way == "to exit":
								cut, s.out.limit = s.out, at
							case n == which:
								cut, s.in.limit = s.in, at
							case n == 0:
								s.out.limit = 150
							}
							return s, nil
						}
						c, e := l.session()
						if err := talk(c, e); err != nil {
							t.Fatalf("cut after %d bytes: %v", at, err)
						}
						reached = cut != nil && cut.passed >= at && cut.limit < 0
					})
					if !reached {
						if at < 200 {
							t.Fatal("only", at, "positions")
						}
						t.Log(at, "positions")
						return
					}
				}
			})
		}
	}
}

// talk is a short conversation: three questions and answers, then both ends.
func talk(c, e *Conn) error {
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 40)
		for {
			_, err := io.ReadFull(e, buf)
			if err == io.EOF {
				done <- e.CloseWrite()
				return
			}
			if err == nil {
				_, err = e.Write(buf)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	in, out := &numbers{}, &numbers{}
	buf := make([]byte, 40)
	for range 3 {
		out.Read(buf)
		if _, err := c.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		if _, err := in.Write(buf); err != nil {
			return err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(buf); n != 0 || err != io.EOF {
		return fmt.Errorf("%d, %v instead of the end", n, err)
	}
	return <-done
}

// schedule plays data as a course of events, two bytes each, on sessions that move bytes both ways; and says
// whether every byte arrived once and in order.
func schedule(t *testing.T, data []byte) error {
	l := newLab(t)
	defer l.close()
	const sessions = 3
	type flow struct {
		from, to *Conn
		sizes    chan int
		sent     numbers
	}
	var flows []*flow
	var next struct {
		sync.Mutex
		limits []int64
		blind  int
	}
	l.open = func(ctx context.Context, n int, _ Want) (*end, error) {
		next.Lock()
		defer next.Unlock()
		if next.blind > 0 {
			next.blind--
			return nil, errors.New("no path")
		}
		s := l.pair()
		if len(next.limits) > 0 {
			if v := next.limits[0]; v%2 == 0 {
				s.in.limit = v
			} else {
				s.out.limit = v
			}
			next.limits = next.limits[1:]
		}
		return s, nil
	}
	var wg sync.WaitGroup
	errs := make(chan error, 4*sessions)
	for range sessions {
		c, e := l.session()
		for _, f := range []*flow{{from: c, to: e}, {from: e, to: c}} {
			f.sizes = make(chan int, len(data)+1)
			flows = append(flows, f)
			wg.Go(func() {
				for n := range f.sizes {
					if _, err := io.CopyN(onlyWriter{f.from}, &f.sent, int64(n)); err != nil {
						errs <- fmt.Errorf("write: %w", err)
						return
					}
				}
				if err := f.from.CloseWrite(); err != nil {
					errs <- err
				}
			})
			wg.Go(func() {
				got := &numbers{}
				if _, err := io.Copy(got, onlyReader{f.to}); err != nil {
					errs <- fmt.Errorf("read at %d: %w", got.at, err)
				} else if got.at != f.sent.at {
					errs <- fmt.Errorf("read %d of %d bytes", got.at, f.sent.at)
				}
			})
		}
	}
	for len(data) >= 2 {
		op, arg := data[0], int(data[1])
		data = data[2:]
		switch op % 10 {
		case 0, 1:
			flows[int(op/10)%len(flows)].sizes <- arg + 1
		case 2, 3:
			flows[int(op/10)%len(flows)].sizes <- arg * 2000
		case 4:
			l.last().Reset()
		case 5:
			l.c.Renew(peerE)
		case 6:
			silence(l.last())
		case 7:
			time.Sleep(time.Duration(arg) * time.Millisecond * time.Duration(1+op/10))
		case 8:
			next.Lock()
			next.limits = append(next.limits, int64(arg)*int64(1+op/10)*3)
			next.Unlock()
		case 9:
			next.Lock()
			next.blind = arg % 16
			next.Unlock()
		}
	}
	for _, f := range flows {
		close(f.sizes)
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func TestRandomSchedules(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 50
	}
	for seed := range n {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		data := make([]byte, 2*(10+r.IntN(90)))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		synctest.Test(t, func(t *testing.T) {
			if err := schedule(t, data); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

func FuzzSchedule(f *testing.F) {
	f.Add([]byte{2, 200, 4, 0, 12, 255, 5, 0, 6, 0, 7, 255, 8, 30, 4, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 400 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			if err := schedule(t, data); err != nil {
				t.Fatal(err)
			}
		})
	})
}
