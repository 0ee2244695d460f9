package punch

import (
	"math/rand/v2"
	"testing"
)

func TestSpreadTellsHowPortsAreGiven(t *testing.T) {
	for _, c := range []struct {
		name    string
		samples []uint16
		want    Order
		step    int
	}{
		{"one after the other", []uint16{42000, 42001, 42002, 42003, 42004}, Sequential, 1},
		{"with foreign flows between", []uint16{42000, 42001, 42004, 42005, 42006}, Sequential, 1},
		{"every second, downwards", []uint16{42000, 41998, 41996, 41994, 41992}, Sequential, -2},
		{"a block", []uint16{50031, 50490, 50112, 50333, 50201, 50007}, Block, 0},
		{"anywhere", []uint16{1200, 60001, 33333, 4711, 51000, 20202}, Random, 0},
		{"the same port again and again", []uint16{4000, 4000, 4000, 4000}, NoOrder, 0},
		{"too few to tell", []uint16{42000, 42001, 42002}, NoOrder, 0},
	} {
		got := Spread(c.samples)
		if got.Order != c.want || got.Step != c.step {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// Most of a block has to be among what is guessed, whichever samples came.
func TestSpreadCoversMostOfABlock(t *testing.T) {
	const low, high = 50000, 50511
	rng := rand.New(rand.NewPCG(1, 2))
	covered := 0
	const runs = 1000
	for range runs {
		var samples []uint16
		for range 6 {
			samples = append(samples, uint16(low+rng.IntN(high-low+1)))
		}
		p := Spread(samples)
		if p.Order != Block {
			continue // six in a row by chance
		}
		if int(p.High-p.Low) > 2*(high-low+1) {
			t.Fatalf("%v: %d ports", samples, p.High-p.Low)
		}
		covered += min(high, int(p.High)) - max(low, int(p.Low)) + 1
	}
	if share := float64(covered) / runs / (high - low + 1); share < 0.9 {
		t.Errorf("%.0f %% of the block are guessed", 100*share)
	}
}

func FuzzSpread(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Fuzz(func(t *testing.T, b []byte) {
		var samples []uint16
		for i := 0; i+1 < len(b); i += 2 {
			samples = append(samples, uint16(b[i])<<8|uint16(b[i+1]))
		}
		p := Spread(samples)
		if p.Order == Block || p.Order == Random {
			if p.High < p.Low {
				t.Errorf("%v: %+v", samples, p)
			}
		}
		for _, port := range p.next(32) {
			if port < lowestPort {
				t.Errorf("%v: port %d", samples, port)
			}
		}
	})
}
