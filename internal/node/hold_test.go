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
