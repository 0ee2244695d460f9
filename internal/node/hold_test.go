package node

import (
	"slices"
	"testing"
	"time"
)

func TestPunchesAreSoonAgainAfterALossButNotForEver(t *testing.T) {
	const s = time.Second
	for name, c := range map[string]struct {
		lost bool
		want []time.Duration
	}{
		"never direct":     {false, []time.Duration{5 * s, 15 * s, 60 * s, 300 * s, 900 * s, 3600 * s, 3600 * s}},
		"lost it just now": {true, []time.Duration{5 * s, 10 * s, 10 * s, 10 * s, 10 * s, 15 * s, 60 * s, 300 * s}},
	} {
		var w punchWaits
		var got []time.Duration
		for range c.want {
			got = append(got, w.next(c.lost))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestWhoIsAwayForLongIsTriedSeldom(t *testing.T) {
	retry := backoff{first: reconnectFirst, rand: func() float64 { return 0.5 }}
	var tries int
	for away := time.Duration(0); away < time.Hour; tries++ {
		retry.last = longestWait(away)
		wait := retry.wait()
		if away < reconnectEager && wait > reconnectLast {
			t.Errorf("after %v: %v", away, wait)
		}
		away += wait
	}
	if tries > 100 { // of 360 by the first minutes' pace
		t.Errorf("tried %d times in an hour", tries)
	}
}
