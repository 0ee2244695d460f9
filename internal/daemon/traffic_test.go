package daemon

import (
	"testing"
	"time"

	"fwd/forward/session"
)

func carried(service, role string, sent, received int64) session.Traffic {
	return session.Traffic{Peer: "p", Service: service, Role: role, Sent: sent, Received: received}
}

func TestRatesAreDifferencesOfLooks(t *testing.T) {
	var tr traffic
	at := time.Unix(1000, 0)
	look := func(after time.Duration, list ...session.Traffic) {
		at = at.Add(after)
		tr.sample(at, session.Totals{Traffic: list})
	}
	look(0, carried("nas", "entry", 1e6, 5e6)) // carried before the first look: no rate
	if s := tr.status(recent); s.Rate != (Rate{}) || len(s.Recent) != 0 || s.Sent != 1e6 {
		t.Fatalf("first look: %+v", s)
	}
	look(2*time.Second, carried("nas", "entry", 1e6+2000, 5e6+8000), carried("web", "exit", 500, 0))
	if got := tr.rate("p", "nas", "entry"); got != (Rate{1000, 4000}) {
		t.Errorf("nas: %+v", got)
	}
	if got := tr.rate("p", "", ""); got != (Rate{1250, 4000}) {
		t.Errorf("peer: %+v", got)
	}
	look(0, carried("nas", "entry", 9e6, 9e6)) // the same moment again: nothing to divide by
	look(time.Second, carried("nas", "entry", 1e6+2000, 5e6+8000), carried("web", "exit", 500, 0))
	if s := tr.status(recent); s.Rate != (Rate{}) || len(s.Recent) != 2 || s.Recent[0] != (Rate{1250, 4000}) {
		t.Errorf("idle: %+v", s)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	var tr traffic
	for i := range 3 * samples {
		tr.sample(time.Unix(int64(i+1), 0), session.Totals{Traffic: []session.Traffic{carried("nas", "exit", int64(i), 0)}})
	}
	if n := len(tr.status(1 << 20).Recent); n != samples {
		t.Errorf("%d samples", n)
	}
	if n := len(tr.status(recent).Recent); n != recent {
		t.Errorf("%d recent", n)
	}
}
