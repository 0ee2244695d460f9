package punch

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// side is one peer of a test: it punches through when both dial each other in opposite roles.
type side struct {
	*Puncher
	report Report
	other  *side

	mu     sync.Mutex
	dials  []Dial
	direct chan struct{}
	once   sync.Once

	fresh             []*fakeSocket
	refuse, distrusts bool
	moved             uint16 // how far from where the relay sees it others see the QUIC port
}

type pipe struct{ net.Conn }

func (p pipe) Reset() error { return p.Close() }

// newSides are two peers joined by pipes with a delay; "a" has the lower ID.
func newSides(a, b Report) (*side, *side) {
	x, y := &side{report: a, direct: make(chan struct{})}, &side{report: b, direct: make(chan struct{})}
	x.other, y.other = y, x
	for id, s := range map[peer.ID]*side{"a": x, "b": y} {
		s.Puncher = New(Config{
			Self:   id,
			Report: func(context.Context) Report { return s.report },
			Open: func(ctx context.Context, p peer.ID) (Stream, error) {
				here, there := net.Pipe()
				go s.other.Handle(context.WithoutCancel(ctx), id, pipe{there})
				return pipe{here}, nil
			},
			Dial:   s.dial,
			Direct: func(peer.ID) (<-chan struct{}, func()) { return s.direct, func() {} },
		})
	}
	return x, y
}

func (s *side) dial(ctx context.Context, _ peer.ID, a ma.Multiaddr, role Role) error {
	s.mu.Lock()
	s.dials = append(s.dials, Dial{Addr: a, Role: role})
	s.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (s *side) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dials)
}

func TestPunchFailsWithItsReasonWhenThePlanIsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSides(nat(1, Independent, true), nat(2, Independent, true))
		o, err := b.Punch(t.Context(), "a")
		if err != nil || o.Direct || !strings.Contains(o.Reason, "simultaneous open by UDP, simultaneous open by TCP; nothing came back") {
			t.Errorf("outcome %+v, %v", o, err)
		}
		if o.Took != 2*openFor {
			t.Errorf("took %v, want two rounds of %v", o.Took, openFor)
		}
		synctest.Wait()
		if a.count() != 4 || b.count() != 4 {
			t.Errorf("%d and %d dials, want QUIC and TCP twice on each side", a.count(), b.count())
		}
	})
}

func TestPunchEndsAsSoonAsThereIsADirectConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSides(nat(1, Independent, true), nat(2, Independent, true))
		time.AfterFunc(200*time.Millisecond, func() { close(a.direct); close(b.direct) })
		o, err := a.Punch(t.Context(), "b")
		if err != nil || !o.Direct || o.Step != StepOpen || o.Took != 200*time.Millisecond {
			t.Errorf("outcome %+v, %v", o, err)
		}
	})
}

func TestPunchStartedByBothAtOnceRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSides(nat(1, Independent, true), nat(2, Independent, true))
		outcomes := make(chan Outcome, 2)
		for s, p := range map[*side]peer.ID{a: "b", b: "a"} {
			go func() {
				o, err := s.Punch(t.Context(), p)
				if err != nil {
					t.Error(err)
				}
				outcomes <- o
			}()
		}
		for range 2 {
			if o := <-outcomes; o.Reason == "" {
				t.Errorf("outcome %+v, want the common run's", o)
			}
		}
		synctest.Wait()
		if a.count() != 4 || b.count() != 4 {
			t.Errorf("%d and %d dials, want those of one run", a.count(), b.count())
		}
	})
}

// A report may name somebody else's address, where each dial of TCP ends at once.
func TestTCPIsDialledAgainABoundedNumberOfTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSides(nat(1, Independent, true), nat(2, Independent, true))
		var dials atomic.Int64
		a.cfg.Dial = func(_ context.Context, _ peer.ID, to ma.Multiaddr, _ Role) error {
			if transportOf(to) == "tcp" {
				dials.Add(1)
			}
			return errors.New("refused")
		}
		for range 20 {
			if _, err := b.Punch(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if n := dials.Load(); n < redials || n > redials+20*2 {
			t.Errorf("%d dials in 20 punches, want %d and no more than two a punch beside them", n, redials)
		}
		time.Sleep(addrSpan)
		before := dials.Load()
		if _, err := b.Punch(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := dials.Load() - before; n < redials/5 {
			t.Errorf("%d dials in a punch after %v, want as many as at first", n, addrSpan)
		}
	})
}
