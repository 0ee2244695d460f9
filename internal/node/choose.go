package node

import "time"

// Which of several connections to a peer is its path (docs/paths.md). A pure function of what was measured.

const (
	// A relayed connection is preferred to a direct one, and within a class TCP to QUIC, only where the
	// latter is slower by both.
	worseFactor = 1.5
	worseBy     = 50 * time.Millisecond
	// Within a class a connection is better if it is faster by a tenth and by 5 ms …
	betterFactor = 0.9
	betterBy     = 5 * time.Millisecond
	// … at two measurements running: latency jitters, and each change costs a resume of the lanes.
	betterTimes = 2

	// Bulk goes by TCP to another of the peer's addresses where its round trip is longer than the path's by no more than
	// this.
	bulkFactor = 1.1
	bulkBy     = 2 * time.Millisecond

	// After a direct path was lost the next one has to last before it is used, trialEach for each loss
	// of late, at most trialLast: paths that come and go would cost a resume each time. forgiveAfter the
	// last loss, or in another network, all is forgotten.
	trialEach, trialLast = 2 * time.Second, time.Minute
	forgiveAfter         = 5 * time.Minute
)

// trial is how long after the last of so many losses a direct path has to wait.
func trial(falls int) time.Duration { return min(time.Duration(falls)*trialEach, trialLast) }

// class orders kinds of connections; a lower one wins unless it is clearly slower.
type class int

const (
	onLAN class = iota
	overInternet
	overRelay
)

// measured is what is known about one connection.
type measured struct {
	class  class
	quic   bool          // wins within a class: it survives changes of address, and leaves TCP to what moves much
	rtt    time.Duration // 0: no answer yet
	least  time.Duration // the shortest round trip so far; 0: no answer yet
	silent bool          // suspected dead; used only if nothing else is there
	host   string        // at the other end of the wire

	further bool // there for bulk, beside another one of its kind
}

// beats says whether a should be used rather than b.
func (a measured) beats(b measured) bool {
	switch {
	case a.silent != b.silent:
		return b.silent
	case (a.rtt == 0) != (b.rtt == 0):
		return b.rtt == 0 // one that has answered is proved in both directions
	case a.class < b.class:
		return !clearlyWorse(a.rtt, b.rtt)
	case a.class > b.class:
		return clearlyWorse(b.rtt, a.rtt)
	case a.quic && !b.quic:
		return !clearlyWorse(a.rtt, b.rtt)
	case b.quic && !a.quic:
		return clearlyWorse(b.rtt, a.rtt)
	case a.further != b.further:
		return b.further // its round trips are those of a queue
	}
	return clearlyBetter(a.rtt, b.rtt)
}

// carries says whether a, by a transport that the kernel runs, may carry what moves much where b is the path: TCP with TLS
// moves it at a quarter of QUIC's CPU time (docs/bench.md), if a is as good a way otherwise.
func (a measured) carries(b measured) bool {
	return !a.quic && a.asGood(b)
}

// asGood says whether a's way is as short as b's. To one host it is the same way: that a took longer says how busy the
// machines were with what moves on b meanwhile. So it does of circuits, unless one is clearly worse.
func (a measured) asGood(b measured) bool {
	switch {
	case a.silent || a.least == 0 || a.class > b.class:
		return false
	case a.host == b.host:
		return true
	case a.class == overRelay:
		return !clearlyWorse(a.least, b.least)
	}
	return float64(a.least) <= bulkFactor*float64(b.least)+float64(bulkBy)
}

// upgrades says whether a is of a better class than b, which works.
func (a measured) upgrades(b measured) bool {
	return a.class < b.class && a.rtt != 0 && !a.silent && b.rtt != 0 && !b.silent
}

// urgent says whether the change from b to a cannot wait for a second measurement: b is not usable, or
// a is of another class.
func (a measured) urgent(b measured) bool {
	return a.silent != b.silent || b.rtt == 0 || a.class < b.class
}

func clearlyWorse(a, b time.Duration) bool {
	return float64(a) > worseFactor*float64(b) && a > b+worseBy
}

func clearlyBetter(a, b time.Duration) bool {
	return float64(a) < betterFactor*float64(b) && a+betterBy <= b
}
