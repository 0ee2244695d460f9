package relaynode

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
)

func TestRatePerPeerPacesACircuit(t *testing.T) {
	const perSecond = 512 << 10
	l := newLab(t, func(c *Config) { c.Limits.PerPeer = perSecond })
	nas, laptop := l.exposed(), l.join()
	if err := l.circuit(laptop, nas); err != nil {
		t.Fatal(err)
	}
	// There and back: each peer sends n and receives n. The first burst is free.
	const n = 512 << 10
	begin := time.Now()
	if err := sendEcho(l.ctx(), laptop, nas.ID(), n); err != nil {
		t.Fatal(err)
	}
	least := time.Duration(float64(2*n-copyBuffer) / perSecond * float64(time.Second))
	if d := time.Since(begin); d < least*9/10 {
		t.Errorf("%d bytes both ways at %d bytes a second took %v, want %v", n, perSecond, d, least)
	}
}

func TestTotalRateIsSharedByAll(t *testing.T) {
	const perSecond = 512 << 10
	l := newLab(t, func(c *Config) { c.Limits.Total = perSecond })
	begin := time.Now()
	errs := make(chan error)
	const n = 128 << 10
	for range 2 {
		nas, laptop := l.exposed(), l.join()
		if err := l.circuit(laptop, nas); err != nil {
			t.Fatal(err)
		}
		go func() { errs <- sendEcho(l.ctx(), laptop, nas.ID(), n) }()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	least := time.Duration(float64(4*n-copyBuffer) / perSecond * float64(time.Second))
	if d := time.Since(begin); d < least*9/10 {
		t.Errorf("took %v, want %v", d, least)
	}
}

func TestMonthsQuotaEndsCircuitsUntilTheNextMonth(t *testing.T) {
	const quota = 256 << 10
	l := newLab(t, func(c *Config) { c.Limits.Monthly = quota })
	nas, laptop, other := l.exposed(), l.join(), l.join()
	if err := l.circuit(laptop, nas); err != nil {
		t.Fatal(err)
	}
	if err := sendEcho(l.ctx(), laptop, nas.ID(), 1<<20); err == nil {
		t.Error("more than the quota was relayed")
	}
	eventually(t, "the circuit is cut", func() bool { return l.relay.Stats().Circuits == 0 })
	if used := l.relay.Usage().Bytes; used > quota+4*copyBuffer {
		t.Errorf("%d bytes were relayed", used)
	}
	if err := l.circuit(other, nas); err == nil || !strings.Contains(err.Error(), "PERMISSION_DENIED") {
		t.Errorf("a new circuit: %v; want a refusal by a word", err)
	}
	if _, err := client.Reserve(l.ctx(), other, l.info()); err != nil {
		t.Errorf("a reservation, which the next month needs: %v", err)
	}
}

func TestUsageCarriesOverARestartWithinTheMonthOnly(t *testing.T) {
	now := time.Date(2026, 11, 30, 23, 59, 0, 0, time.UTC)
	m := newMeter(Limits{Monthly: 100}, Usage{Month: "2026-11", Bytes: 60}, func() time.Time { return now })
	if !m.count(40) || !m.spent() || m.count(1) {
		t.Errorf("used %+v of 100", m.usage())
	}
	now = now.Add(-time.Hour * 24 * 40)
	if !m.spent() {
		t.Error("a clock set back gave the quota anew")
	}
	now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	if m.spent() || m.usage() != (Usage{Month: "2026-12"}) {
		t.Errorf("in the next month used %+v", m.usage())
	}
}

func TestAClockThatWasWrongEndsNoQuotaForEver(t *testing.T) {
	const quota = 100
	at := func(year int, month time.Month) time.Time { return time.Date(year, month, 31, 12, 0, 0, 0, time.UTC) }
	now := at(2099, time.January)
	m := newMeter(Limits{Monthly: quota}, Usage{Month: "2026-12", Bytes: 60}, func() time.Time { return now })
	m.count(quota)
	if !m.spent() {
		t.Fatalf("used %+v", m.usage())
	}
	restarted := newMeter(Limits{Monthly: quota}, m.usage(), func() time.Time { return now })
	now = at(2026, time.December)
	if u := m.usage(); u != (Usage{Month: "2026-12", Bytes: 60}) || m.spent() {
		t.Errorf("the clock is right again: used %+v, spent %v; want what the month had", u, m.spent())
	}
	if u := restarted.usage(); u != (Usage{Month: "2026-12"}) || restarted.spent() {
		t.Errorf("the clock is right again after a restart: used %+v, spent %v", u, restarted.spent())
	}
	now = at(2027, time.January)
	if u := m.usage(); u != (Usage{Month: "2027-01"}) {
		t.Errorf("in the next month used %+v", u)
	}
}

func TestAMachineThatStartsWithAnOldClockKeepsItsMonth(t *testing.T) {
	now := time.Unix(0, 0) // no clock runs while it is off
	m := newMeter(Limits{Monthly: 100}, Usage{Month: "2026-11", Bytes: 60}, func() time.Time { return now })
	m.count(1)
	now = time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	if u := m.usage(); u != (Usage{Month: "2026-11", Bytes: 60}) {
		t.Errorf("used %+v", u)
	}
}

func TestClosingStreamsBuysNoNewBurst(t *testing.T) {
	m := newMeter(Limits{PerPeer: minRate}, Usage{}, time.Now)
	b, release := m.bucketOf("p")
	if !b.AllowN(time.Now(), copyBuffer) {
		t.Fatal("no burst")
	}
	release()
	if again, _ := m.bucketOf("p"); again != b {
		t.Error("a new bucket")
	}
}

func TestSenselessLimitsAreRefused(t *testing.T) {
	for _, l := range []Limits{{PerPeer: -1}, {Total: 100}, {Monthly: -1}} {
		if _, err := New(nil, Config{Member: func(peer.ID) bool { return true }, Limits: l}); err == nil {
			t.Errorf("%+v was taken", l)
		}
	}
}

func TestCircuitsShareTheTotalRateFairly(t *testing.T) {
	const perSecond = 2 << 20
	l := newLab(t, func(c *Config) { c.Limits.Total = perSecond })
	var taken [4]atomic.Int64
	for i := range taken {
		sink, source := l.exposed(), l.join()
		sink.SetStreamHandler("/test/sink", func(s network.Stream) {
			for buf := make([]byte, copyBuffer); ; {
				n, err := s.Read(buf)
				taken[i].Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		if err := l.circuit(source, sink); err != nil {
			t.Fatal(err)
		}
		// One of them is greedier: eight streams on its circuit.
		for range 1 + 7*(i/3) {
			s, err := source.NewStream(l.ctx(), sink.ID(), "/test/sink")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Reset()
			go func() {
				for buf := make([]byte, copyBuffer); ; {
					if _, err := s.Write(buf); err != nil {
						return
					}
				}
			}()
		}
	}
	eventually(t, "all are under way", func() bool { return l.relay.Stats().Bytes > perSecond })
	// A busy machine may not let one of them run for a while.
	eventually(t, "two seconds in which no circuit has less than half of another's bytes", func() bool {
		var before, shares [len(taken)]int64
		for i := range taken {
			before[i] = taken[i].Load()
		}
		begin := time.Now()
		eventually(t, "two seconds' worth", func() bool {
			var sum int64
			for i := range taken {
				shares[i] = taken[i].Load() - before[i]
				sum += shares[i]
			}
			return sum >= 2*perSecond
		})
		t.Logf("in %v: %v bytes", time.Since(begin).Round(time.Millisecond), shares)
		return slices.Min(shares[:]) >= slices.Max(shares[:])/2
	})
}
