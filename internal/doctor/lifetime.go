package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// How long the NAT keeps a UDP mapping that is not used, measured side by side for each of lives:
//
//  1. a fresh socket asks the relay, and again after settle: NATs give a mapping that has been answered
//     and used again a longer life
//  2. it is silent for so long
//  3. another socket asks the relay to send to the first one's mapping: it comes in, or the mapping is gone

// lives are the spans tried, s. Below 15 s fwd's own probes would come too late; RFC 4787 asks for 5 min.
var lives = []time.Duration{10 * time.Second, 20 * time.Second, 30 * time.Second, 45 * time.Second, time.Minute,
	90 * time.Second, 2 * time.Minute, 3 * time.Minute, 5 * time.Minute}

const (
	settle = 2500 * time.Millisecond // Linux: 2 s until an answered flow counts as a stream
	// keepAlive is how often fwd itself uses a mapping that it wants kept, internal/node's probeEvery.
	keepAlive = 15 * time.Second
)

// lived is how a mapping came through its silence.
type lived int

const (
	untold lived = iota // the relay did not answer, or time was up
	dead
	alive
)

// lifetime asks the relay that showed the mapping.
func (e *examination) lifetime(ctx context.Context, n NAT) Check {
	c := Check{ID: "lifetime", Level: Hint}
	if !n.seen.IsValid() {
		c.What, c.Mend = "cannot be measured: no relay answers plain UDP", "on a relay, open the UDP port after its own (4002)"
		return c
	}
	if n.besideRelays() {
		c.What, c.Mend = "cannot be measured: the relays that answer are beside this machine, in front of its NAT", "measure it by a relay on the internet: fwd invite --relay"
		return c
	}
	e.progress("measuring how long UDP mappings live; up to 5 min")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make([]chan lived, len(lives))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, life := range lives {
		outcomes[i] = make(chan lived, 1)
		wg.Go(func() { outcomes[i] <- survives(ctx, n.asked, life) })
	}
	var last time.Duration
	for i, life := range lives {
		switch <-outcomes[i] {
		case untold:
			c.What = "not measured to the end"
			if ctx.Err() == nil {
				c.What, c.Mend = c.What+": the relay answers no more", "try again: fwd doctor --lifetime"
			}
			cancel()
			return c
		case dead:
			cancel() // the longer ones are of no interest
			return judge(c, last, life)
		}
		last = life
	}
	return judge(c, last, 0)
}

// judge: the mapping lived for from, and no more after to; 0: it outlived all.
func judge(c Check, from, to time.Duration) Check {
	switch {
	case to == 0:
		c.Level, c.What = OK, fmt.Sprintf("UDP mappings live %v and longer without traffic", from)
	case to <= keepAlive:
		c.Level, c.What = Wrong, fmt.Sprintf("UDP mappings live less than %v without traffic; fwd uses them each %v", to, keepAlive)
		c.Mend = "raise the UDP time-out in the router's settings to 30 s or more"
	default:
		c.Level, c.What = OK, fmt.Sprintf("UDP mappings live %v without traffic, less than %v", from, to)
		if from < keepAlive {
			c.Level, c.Mend = Hint, "raise the UDP time-out in the router's settings to 30 s or more"
		}
	}
	return c
}

// survives says whether a mapping towards r lives that long without traffic.
func survives(ctx context.Context, r reflector, life time.Duration) lived {
	s, err := listen()
	if err != nil {
		return untold
	}
	defer s.close()
	if _, ok := s.ask(ctx, r, 0, 0); !ok || !pause(ctx, settle) {
		return untold
	}
	a, ok := s.ask(ctx, r, 0, 0)
	if !ok || !pause(ctx, life) {
		return untold
	}
	helper, err := listen()
	if err != nil {
		return untold
	}
	defer helper.close()
	for range 2 { // one packet may get lost
		b, ok := helper.ask(ctx, r, alsoPort, a.seen.Port())
		if !ok {
			return untold
		}
		if _, ok = s.wait(ctx, time.Now().Add(unasked), func(x arrival) bool { return x.nonce == b.nonce }); ok {
			return alive
		}
	}
	if ctx.Err() != nil {
		return untold
	}
	return dead
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
