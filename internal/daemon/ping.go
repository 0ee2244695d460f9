package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/identity"
	"fwd/internal/node"
)

const (
	// untilDirectPings: the ladder's last step ends after about 25 s.
	untilDirectPings = 30
	// pingEvery is what ping does everywhere.
	pingEvery = time.Second
	// firstPong is how long the first answer may take unless --timeout says otherwise.
	firstPong = 30 * time.Second
	// pongTimeout is after how long a ping counts as lost.
	pongTimeout = 5 * time.Second
)

// ping measures the way to a machine once a second, until ctx ends, the count
// is full, or the way is direct.
func (d *Daemon) ping(ctx context.Context, req PingRequest, emit func(Event)) error {
	p, err := d.pingTarget(ctx, req.Name)
	if err != nil {
		return err
	}
	release := d.node.Hold(p, node.Auto)
	defer release()
	wait := req.Timeout
	if wait == 0 {
		wait = firstPong
	}
	first, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := d.node.Connect(first, p); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return d.unreachable(d.nameOf(p), err)
	}
	for seq := 1; ; seq++ {
		late, cancel := first, func() {}
		if seq > 1 {
			late, cancel = context.WithTimeout(ctx, pongTimeout)
		}
		path, err := pong(late, d.node, p)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			emit(Event{Event: "progress", Message: fmt.Sprintf("no pong from %s: %s", d.nameOf(p), d.notReached(err))})
		default:
			emit(Event{Event: "pong", Peer: p.String(), Machine: d.nameOf(p), Path: d.pathOf(path), Seq: seq})
		}
		direct := err == nil && path.Kind == "direct"
		switch {
		case req.UntilDirect && direct, req.Count > 0 && seq == req.Count && err == nil && !req.UntilDirect:
			return nil
		case req.UntilDirect && seq == max(req.Count, untilDirectPings):
			return fail(ExitUnreachable, "not-direct", "fwd status says why", "%s is still reached by relay", d.nameOf(p))
		case req.Count > 0 && seq >= req.Count && !req.UntilDirect:
			return d.unreachable(d.nameOf(p), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pingEvery):
		}
	}
}

// pong is an answer to a ping. That the path changed under it says nothing of the machine: it is asked again until ctx
// ends.
func pong(ctx context.Context, by pinger, p peer.ID) (node.Path, error) {
	for {
		once, cancel := context.WithTimeout(ctx, pongTimeout)
		path, err := by.Ping(once, p)
		cancel()
		if !errors.Is(err, node.ErrPathChanged) || ctx.Err() != nil {
			return path, err
		}
		if by.Connect(ctx, p) != nil { // what it changed to may be no path at all
			return path, err
		}
	}
}

// pinger is what pong needs of a node.
type pinger interface {
	Ping(context.Context, peer.ID) (node.Path, error)
	Connect(context.Context, peer.ID) error
}

// pingTarget is the machine that the word means, be it by one of its services.
func (d *Daemon) pingTarget(ctx context.Context, word string) (peer.ID, error) {
	p, err := d.findPeer(ctx, word, (*identity.Roster).ResolveAny)
	switch {
	case errors.Is(err, identity.ErrUnknownName):
		return "", d.noMachine(word, "")
	case err != nil:
		return "", err
	case p == d.self:
		return "", usage("name another machine: fwd peers", "%s is this very machine", word)
	}
	return p, nil
}
