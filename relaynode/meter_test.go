package relaynode

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
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
	if err := l.circuit(other, nas); err == nil {
		t.Error("a new circuit was opened")
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
