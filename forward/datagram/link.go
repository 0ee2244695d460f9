package datagram

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// The entry's half keeps a carrier to its peer: it opens one, watches whether it lives, and replaces it when there is a
// better path or it has gone silent. The exit's half only takes what comes.

const (
	openWithin    = 20 * time.Second // a stream, a path to be found included
	welcomeWithin = 5 * time.Second
	retryFirst    = 200 * time.Millisecond
	retryLast     = 5 * time.Second
	retryFactor   = 1.6
	steadyAfter   = 10 * time.Second // a carrier that lived so long begins the pauses anew

	// A carrier is asked for a sign of life when nothing has come for half of the time since a datagram moved,
	// between quietFirst and quietLast; it is suspect when none has come suspectAfter, or suspectRTTs round trips, later.
	quietFirst   = time.Second
	quietLast    = 15 * time.Second
	suspectAfter = time.Second
	suspectRTTs  = 4
	watchEvery   = 250 * time.Millisecond
)

var errRefused = errors.New("datagram: the peer takes no datagrams from us")

// keep keeps a carrier until ctx ends.
func (h *half) keep(ctx context.Context) {
	defer h.endAll(ErrClosed)
	var cur *carrier // the last that was attached; it may have ended
	silent := false  // cur was found to be
	pause := retryFirst
	for ctx.Err() == nil {
		var avoid Stream
		if silent {
			avoid = cur.stream
		}
		c, err := h.attach(ctx, avoid)
		switch {
		case err == nil:
			cur = c
		case cur != nil && !cur.over() && !(silent && cur.unanswered()):
			// The better path was none, or the old one lives after all.
		default:
			h.log.Debug("no carrier", "err", err)
			if errors.Is(err, errRefused) {
				h.refuseAll()
				pause = retryLast
			}
			pause = h.wait(ctx, pause)
			continue
		}
		silent = h.watch(ctx, cur)
		switch {
		case time.Since(cur.began) > steadyAfter:
			pause = retryFirst
		case cur.over():
			pause = h.wait(ctx, pause)
		}
	}
}

// wait waits, ±30 %, until the next try or a better path, and returns the pause after this one.
func (h *half) wait(ctx context.Context, pause time.Duration) (next time.Duration) {
	t := time.NewTimer(time.Duration((0.7 + 0.6*rand.Float64()) * float64(pause)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-h.renew:
	case <-ctx.Done():
	}
	return min(time.Duration(retryFactor*float64(pause)), retryLast)
}

// refuseAll: the peer lets us use nothing.
func (h *half) refuseAll() {
	for _, f := range h.all() {
		f.end(&RefusedError{Service: f.service, Code: Denied})
	}
}

// attach opens a carrier. Where there is another it takes its place only once the peer has answered; else datagrams go by
// it at once.
func (h *half) attach(ctx context.Context, avoid Stream) (*carrier, error) {
	opening, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	s, err := h.e.cfg.Open(opening, h.peer, avoid)
	if err != nil {
		return nil, err
	}
	packets := h.e.packetsOf(s)
	c := newCarrier(h, s, packets, hello{packets: packets != nil, boot: h.boot}.append(nil))
	failed := make(chan error, 1)
	if !h.e.tasks.start(func() {
		failed <- c.run(func(r *bufio.Reader) error {
			if err := c.readWelcome(r); err != nil {
				return err
			}
			return c.readFrames(r)
		})
	}) {
		s.Reset()
		return nil, ErrClosed
	}
	if h.current() == nil {
		h.use(c)
	}
	tarries := time.NewTimer(welcomeWithin)
	defer tarries.Stop()
	select {
	case <-c.welcomed:
		h.use(c)
		h.retire(c)
		return c, nil
	case err := <-failed:
		return nil, err
	case <-tarries.C:
		c.end()
		return nil, fmt.Errorf("datagram: no answer in %v", welcomeWithin)
	case <-ctx.Done():
		c.end()
		return nil, ctx.Err()
	}
}

// watch returns when another carrier is wanted: c has ended, a better path may be there, or c has gone silent.
func (h *half) watch(ctx context.Context, c *carrier) (silent bool) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-c.done:
			return false
		case <-h.renew:
			return false
		case now := <-tick.C:
			if c.unanswered() {
				if now.Sub(c.asked) > max(suspectAfter, suspectRTTs*c.roundTrip()) {
					h.log.Debug("carrier fell silent", "since", c.lastHeard())
					return true
				}
				continue
			}
			moved, busy := h.activity()
			if busy && now.Sub(c.lastHeard()) > min(max(now.Sub(moved)/2, quietFirst), quietLast) {
				c.asked = now
				c.askAlive()
			}
		}
	}
}

// activity tells when a datagram last moved, and whether there are flows.
func (h *half) activity() (moved time.Time, busy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.moved, len(h.flows) > 0
}
