package session

import "testing"

// TestALinkThatNothingIsAcknowledgedOnLeavesOthersMemory, however many lanes it has.
func TestALinkThatNothingIsAcknowledgedOnLeavesOthersMemory(t *testing.T) {
	const budget = DefaultBudget
	m := &memory{budget: budget}
	var rings []*ring
	// full has a link's lanes hold as much as they may.
	full := func(lanes int) (held int64) {
		all := new(int64)
		for range lanes {
			r := &ring{mem: m, all: all}
			rings = append(rings, r)
			for r.end-r.acked < maxRing {
				b := r.room(muxMessage, false)
				if b == nil {
					break
				}
				r.add(len(b))
			}
		}
		return *all
	}
	const near = maxLanes * minRing // what the lanes may have in any case
	for _, k := range []struct{ lanes, want int64 }{
		{maxLanes, budget / 2}, // the hoarder
		{maxLanes, budget / 4}, // it again, in the other direction of use
		{1, budget / 8},
		{1, budget / 16},
	} {
		if held := full(int(k.lanes)); held < k.want-near || held > k.want+near {
			t.Errorf("a link of %d lanes holds %d bytes, want %d", k.lanes, held, k.want)
		}
	}
	for _, r := range rings {
		r.clear()
	}
	if m.used != 0 {
		t.Errorf("in the end %d bytes seem to be used", m.used)
	}
	if held := full(1); held < maxRing {
		t.Errorf("alone a lane holds %d bytes, want %d", held, int64(maxRing))
	}
}
