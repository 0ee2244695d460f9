package punch

import "slices"

// How a NAT gives ports to new flows, as far as fresh sockets show. It matters for NATs that map each
// destination anew: their ports have to be foretold or guessed.

// Order is the order in which a NAT gives ports.
type Order string

const (
	NoOrder    Order = ""           // not known, or of no interest
	Sequential Order = "sequential" // the next flow gets the next port, Step away
	Block      Order = "block"      // any port of a small range: a carrier's share for one customer
	Random     Order = "random"     // any port
)

// Ports is what samples of fresh flows show.
type Ports struct {
	Order     Order
	Low, High uint16 // where new flows' ports lie; with Sequential, the last one seen is Last instead
	Step      int    // Sequential: from one flow's port to the next one's
	Last      uint16 // Sequential: the newest flow's port
}

const (
	// lowestPort is the lowest that NATs give.
	lowestPort = 1024
	// maxStep is how far apart the ports of consecutive flows may be to pass for a sequence: some NATs
	// give every second port, and foreign flows come in between.
	maxStep = 16
	// minSamples is how many flows it takes to tell a sequence from chance: five ports in a row within
	// 16 of each other are chance once in 10¹⁸.
	minSamples = 4
	// maxBlock is the largest range that passes for a block; carriers give 512 to 4096 ports.
	maxBlock = 4096
)

// Spread judges the ports that fresh flows got, in the order in which they were begun.
func Spread(samples []uint16) Ports {
	if len(samples) < minSamples {
		return Ports{}
	}
	if step, ok := stepOf(samples); ok {
		return Ports{Order: Sequential, Step: step, Last: samples[len(samples)-1]}
	}
	low, high := int(slices.Min(samples)), int(slices.Max(samples))
	// Of n random samples of a range, the outermost two leave 1/(n+1) of it on each side. Twice that is
	// added: what is guessed too wide costs less than what is left out.
	margin := 2 * (high - low) / (len(samples) - 1)
	p := Ports{Order: Block, Low: uint16(max(low-margin, lowestPort)), High: uint16(min(high+margin, 65535))}
	if high-low > maxBlock {
		p.Order = Random
		if high-low > 1<<14 {
			p.Low, p.High = lowestPort, 65535
		}
	}
	return p.sane()
}

// stepOf is the usual distance of consecutive samples, if they go in one direction by small steps.
func stepOf(samples []uint16) (int, bool) {
	var steps []int
	for i := 1; i < len(samples); i++ {
		steps = append(steps, int(samples[i])-int(samples[i-1]))
	}
	sorted := slices.Sorted(slices.Values(steps))
	usual := sorted[len(sorted)/2]
	for _, s := range steps {
		if s == 0 || s > maxStep || s < -maxStep || (s > 0) != (usual > 0) {
			return 0, false
		}
	}
	return usual, true
}

// after is the port that the i-th flow from now gets, 0 where the numbers end.
func (p Ports) after(i int) uint16 {
	if port := int(p.Last) + p.Step*i; port >= lowestPort && port <= 65535 {
		return uint16(port)
	}
	return 0
}

// next are the ports of the next n flows.
func (p Ports) next(n int) []uint16 {
	var out []uint16
	for i := 1; i <= n; i++ {
		if port := p.after(i); port != 0 {
			out = append(out, port)
		}
	}
	return out
}

// sane says whether p, from a peer, can be planned with.
func (p Ports) sane() Ports {
	switch p.Order {
	case Sequential:
		if p.Step != 0 && p.Step >= -maxStep && p.Step <= maxStep && p.Last >= lowestPort {
			return Ports{Order: Sequential, Step: p.Step, Last: p.Last}
		}
	case Block, Random:
		if p.Low >= lowestPort && p.High > p.Low {
			return Ports{Order: p.Order, Low: p.Low, High: p.High}
		}
	}
	return Ports{}
}
