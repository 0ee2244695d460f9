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
	var avoid Stream // cur's, if it has gone silent
	var asked time.Time
	pause := retryFirst
	for ctx.Err() == nil {
		c, err := h.attach(ctx, avoid)
		switch {
		case err == nil:
			cur = c
		case cur != nil && !cur.over() && (avoid == nil || cur.lastHeard().After(asked)):
			// The better path was none, or the old one lives after all.
		default:
			h.log.Debug("no carrier", "err", err)
			if errors.Is(err, errRefused) {
				h.refuseAll()
				pause = retryLast
			}
			h.wait(ctx, pause)
			pause = min(time.Duration(retryFactor*float64(pause)), retryLast)
			continue
		}
		avoid, asked = h.watch(ctx, cur)
		switch {
		case time.Since(cur.began) > steadyAfter:
			pause = retryFirst
		case cur.over():
			h.wait(ctx, pause)
			pause = min(time.Duration(retryFactor*float64(pause)), retryLast)
		}
	}
}

// wait waits, ±30 %, until the next try or a better path.
func (h *half) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(time.Duration((0.7 + 0.6*rand.Float64()) * float64(d)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-h.renew:
	case <-ctx.Done():
	}
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

// watch returns when another carrier is wanted: c has ended, a better path may be there, or c has gone silent, which makes
// its stream one to avoid since it was asked for a sign of life.
func (h *half) watch(ctx context.Context, c *carrier) (avoid Stream, asked time.Time) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return nil, asked
		case <-c.done:
			return nil, asked
		case <-h.renew:
			return nil, asked
		case now := <-tick.C:
			heard := c.lastHeard()
			switch {
			case waiting && heard.After(asked):
				waiting = false
			case waiting:
				if now.Sub(asked) > max(suspectAfter, suspectRTTs*c.roundTrip()) {
					h.log.Debug("carrier fell silent", "since", heard)
					return c.stream, asked
				}
			default:
				moved, busy := h.activity()
				if busy && now.Sub(heard) > min(max(now.Sub(moved)/2, quietFirst), quietLast) {
					waiting, asked = true, now
					c.askAlive()
				}
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
