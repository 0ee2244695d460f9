package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward/session"
)

const (
	// sampleEvery is how often the counts of the sessions are looked at: a rate is
	// the difference of two looks.
	sampleEvery = time.Second
	// samples kept: five minutes of seconds, what the page draws.
	samples = 300
	// recent samples are the minute that status shows.
	recent = 60
)

// A Rate is in bytes a second, as seen from this machine.
type Rate struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
}

func (r Rate) plus(o Rate) Rate { return Rate{r.Sent + o.Sent, r.Received + o.Received} }

// TrafficStatus is what all sessions together have carried.
type TrafficStatus struct {
	Sent     int64  `json:"sent"` // bytes since the daemon began
	Received int64  `json:"received"`
	Rate     Rate   `json:"rate"`
	Recent   []Rate `json:"recent"` // of each second of the last minute at most, newest last
}

// PathStatus is the way to one peer that has sessions with us or that we forward to.
type PathStatus struct {
	Peer    string `json:"peer"`
	Machine string `json:"machine"`
	Path    *Path  `json:"path"` // nil: none now
	Rate    Rate   `json:"rate"`
}

// traffic keeps the rates of the last minutes.
type traffic struct {
	mu     sync.Mutex
	at     time.Time
	counts map[trafficKey]Rate // bytes at the last look
	rates  map[trafficKey]Rate
	total  TrafficStatus
	past   []Rate // at most samples, newest last
}

type trafficKey struct {
	peer    peer.ID
	service string
	role    string
}

// followTraffic looks once a second until ctx ends.
func (d *Daemon) followTraffic(ctx context.Context) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	last := time.Now()
	d.traffic.sample(last, d.totals())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			d.traffic.sample(now, d.totals())
			if seconds := now.Sub(last).Seconds(); seconds > 0 {
				d.lookAtForwards(seconds)
				last = now
			}
		}
	}
}

// sample takes one look. The first has nothing to compare with.
func (t *traffic) sample(now time.Time, totals session.Totals) {
	t.mu.Lock()
	defer t.mu.Unlock()
	seconds, first := now.Sub(t.at).Seconds(), t.at.IsZero()
	if !first && seconds <= 0 {
		return
	}
	t.at = now
	counts, rates := map[trafficKey]Rate{}, map[trafficKey]Rate{}
	t.total.Sent, t.total.Received, t.total.Rate = 0, 0, Rate{}
	for _, c := range totals.Traffic {
		k := trafficKey{c.Peer, c.Service, c.Role}
		counts[k] = Rate{c.Sent, c.Received}
		t.total.Sent += c.Sent
		t.total.Received += c.Received
		if first {
			continue
		}
		was := t.counts[k]
		if r := (Rate{perSecond(c.Sent-was.Sent, seconds), perSecond(c.Received-was.Received, seconds)}); r != (Rate{}) {
			rates[k] = r
			t.total.Rate = t.total.Rate.plus(r)
		}
	}
	t.counts, t.rates = counts, rates
	if first {
		return
	}
	if t.past = append(t.past, t.total.Rate); len(t.past) > samples {
		t.past = append(make([]Rate, 0, samples+recent), t.past[len(t.past)-samples:]...)
	}
}

func perSecond(bytes int64, seconds float64) int64 { return int64(float64(bytes) / seconds) }

// status is the whole; history are the last n seconds, newest last.
func (t *traffic) status(n int) TrafficStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.total
	s.Recent = append([]Rate{}, t.past[max(0, len(t.past)-n):]...)
	return s
}

// rate is the sum over what matches; empty words match all.
func (t *traffic) rate(p peer.ID, service, role string) (sum Rate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, r := range t.rates {
		if (p == "" || k.peer == p) && (service == "" || k.service == service) && (role == "" || k.role == role) {
			sum = sum.plus(r)
		}
	}
	return sum
}
