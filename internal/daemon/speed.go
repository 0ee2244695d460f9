package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"fwd/identity"
	"fwd/internal/node"
)

// How fast a path is, is measured on a stream of its own, without sessions and
// targets: what the path can carry, beside whatever it carries now.
//
//	asker    ▶ speedAsk         which way, for how long
//	answerer ▶ speedAnswer      yes, or why not
//	down: the answerer writes until the asker, having counted for that long, resets
//	up:   the asker writes; the answerer counts for that long from the first byte
//	      ▶ speedCount

const speedProtocol = protocol.ID("/fwd/speed/1")

const (
	// speedFor is how long each direction is measured unless --for says otherwise:
	// slow start is over in a second on most paths.
	speedFor = 3 * time.Second
	// maxSpeedFor bounds what a peer may ask of us.
	maxSpeedFor = 10 * time.Second
	// speedGrace is for everything but the bytes: a few round trips of a bad path.
	speedGrace = 10 * time.Second
	// speedSlots is how many measurements a machine answers at once; more would
	// measure each other.
	speedSlots = 1
	// speedQueue is how long the next waits for the last to end: its reset is on the way.
	speedQueue = 2 * time.Second
	// directWait is how long a direct path may take: the ladder's first round.
	directWait = 10 * time.Second

	maxSpeedMsg = 1 << 10  // bytes
	speedPiece  = 64 << 10 // bytes a write
)

type speedAsk struct {
	Up  bool          `json:"up"` // the asker sends
	For time.Duration `json:"for"`
}

type speedAnswer struct {
	Refused string `json:"refused,omitempty"`
}

type speedCount struct {
	Bytes int64         `json:"bytes"`
	In    time.Duration `json:"in"` // from the first byte
}

// serveSpeed is the answerer's half: members alone, one at a time, seconds.
func (d *Daemon) serveSpeed(s network.Stream) {
	defer s.Reset() // what is still under way is worth nothing
	s.SetDeadline(time.Now().Add(speedGrace + maxSpeedFor))
	p := s.Conn().RemotePeer()
	var ask speedAsk
	if identity.ReadMsg(s, maxSpeedMsg, &ask) != nil {
		return
	}
	answer := speedAnswer{Refused: d.refuseSpeed(p, ask)}
	if answer.Refused == "" {
		select {
		case d.speeds <- struct{}{}:
			defer func() { <-d.speeds }()
		case <-time.After(speedQueue):
			answer.Refused = "it is measuring for another machine"
		}
	}
	if identity.WriteMsg(s, answer) != nil || answer.Refused != "" {
		s.CloseWrite() // the reset must not overtake it
		io.Copy(io.Discard, io.LimitReader(s, 1))
		return
	}
	d.log.Debug("speed is measured", "peer", d.nameOf(p), "up", ask.Up, "for", ask.For)
	if !ask.Up {
		pour(s, time.Now().Add(ask.For+speedGrace))
		return
	}
	if identity.WriteMsg(s, countFor(s, ask.For)) == nil {
		s.CloseWrite()
		s.SetReadDeadline(time.Now().Add(speedGrace))
		io.Copy(io.Discard, s) // until the asker has read it and resets
	}
}

// onlyMembers is told to a guest, and understood by its fwd as final: never to be changed.
const onlyMembers = "only members may measure"

// refuseSpeed says why not, if so. A guest is here for its services alone.
func (d *Daemon) refuseSpeed(p peer.ID, ask speedAsk) string {
	e, ok := d.book.For(p).Entry(p)
	switch {
	case !d.member(p) || !ok, e.Caps&(identity.Use|identity.Expose) == 0 || len(e.Only) > 0:
		return onlyMembers
	case ask.For <= 0 || ask.For > maxSpeedFor:
		return fmt.Sprintf("it measures for %s at most", maxSpeedFor)
	}
	return ""
}

// pour writes until the other side has enough or it is late.
func pour(s network.Stream, until time.Time) {
	s.SetWriteDeadline(until)
	piece := make([]byte, speedPiece)
	for i := range piece {
		piece[i] = byte(rand.Uint32()) // nothing on the way can compress it
	}
	for {
		if _, err := s.Write(piece); err != nil {
			return
		}
	}
}

// countFor counts what comes for so long from its first byte on.
func countFor(s network.Stream, span time.Duration) (c speedCount) {
	piece := make([]byte, speedPiece)
	_, err := s.Read(piece) // shows when it began, and is not counted
	if err != nil {
		return c
	}
	began := time.Now()
	s.SetReadDeadline(began.Add(span))
	for err == nil {
		var n int
		n, err = s.Read(piece)
		c.Bytes += int64(n)
	}
	c.In = time.Since(began)
	return c
}

// Speed is the answer of `fwd speed`.
type Speed struct {
	Machine string      `json:"machine"`
	Peer    string      `json:"peer"`
	Paths   []SpeedPath `json:"paths"` // relay, direct
}

// SpeedPath is one kind of path measured. Rates are in bits a second, as lines
// are sold.
type SpeedPath struct {
	Kind  string `json:"kind"`
	Path  *Path  `json:"path"` // nil: none
	Down  int64  `json:"down_bits_per_second"`
	Up    int64  `json:"up_bits_per_second"`
	Error string `json:"error,omitempty"` // why not measured
}

// speed measures the ways to a machine, the relayed one first.
func (d *Daemon) speed(ctx context.Context, req SpeedRequest, emit func(Event)) error {
	kind, err := node.ParsePathKind(req.Path)
	if err != nil {
		return usage("--path auto, direct or relay", "%v", err)
	}
	if req.For == 0 {
		req.For = speedFor
	}
	if req.For < 0 || req.For > maxSpeedFor {
		return usage("--for 3s", "measuring takes %s at most a direction", maxSpeedFor)
	}
	p, err := d.pingTarget(ctx, req.Name)
	if err != nil {
		return err
	}
	release := d.node.Hold(p, node.Auto) // so that a direct path is being made meanwhile
	defer release()
	reach, cancel := context.WithTimeout(ctx, firstPong)
	defer cancel()
	emit(Event{Event: "progress", Message: "looking for ways to " + d.nameOf(p)})
	if err := d.node.Connect(reach, p); err != nil {
		return d.unreachable(d.nameOf(p), err)
	}
	answer := Speed{Machine: d.nameOf(p), Peer: p.String(), Paths: []SpeedPath{}}
	measured := false
	for _, k := range []node.PathKind{node.Relay, node.Direct} {
		if kind != node.Auto && kind != k {
			continue
		}
		row, refused := d.speedBy(ctx, p, k, req.For, emit)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case refused != nil: // by whichever path
			refused.Hint = "the way and its round trip are told to all: fwd ping " + req.Name
			return refused
		}
		measured = measured || row.Error == ""
		answer.Paths = append(answer.Paths, row)
	}
	if !measured {
		return d.unreachable(answer.Machine, errors.New(answer.Paths[len(answer.Paths)-1].Error))
	}
	return emitResult(emit, "speed", answer)
}

// speedBy measures one kind of path, if there is one in time; or p never lets us.
func (d *Daemon) speedBy(ctx context.Context, p peer.ID, kind node.PathKind, span time.Duration, emit func(Event)) (row SpeedPath, refused *Failure) {
	row = SpeedPath{Kind: kind.String()}
	if kind == node.Relay && len(d.relays()) == 0 {
		row.Error = "the network has no other relay"
		return row, nil
	}
	if kind == node.Direct {
		d.awaitDirect(ctx, p)
	}
	for _, up := range []bool{false, true} {
		word := "down"
		if up {
			word = "up"
		}
		ctx, cancel := context.WithTimeout(ctx, span+2*speedGrace)
		bits, err := d.measure(ctx, p, kind, speedAsk{Up: up, For: span}, func() {
			if path, ok := d.node.PathBy(p, kind); ok {
				row.Path = d.pathOf(path)
			}
			emit(Event{Event: "progress", Message: fmt.Sprintf("measuring %s %s", kind, word)})
		})
		cancel()
		if errors.As(err, &refused) && refused.Code == "refused" {
			return row, refused
		}
		if err != nil {
			row.Error = d.whyNot(p, kind, err)
			return row, nil
		}
		if up {
			row.Up = bits
		} else {
			row.Down = bits
		}
	}
	return row, nil
}

func (d *Daemon) whyNot(p peer.ID, kind node.PathKind, err error) string {
	var refused *Failure
	if errors.As(err, &refused) {
		return refused.What
	}
	if path, ok := d.node.Path(p); ok && kind == node.Direct && path.Kind == "relay" {
		if path.Reason != "" {
			return "no direct path: " + path.Reason
		}
		return "no direct path yet; fwd doctor tells what stands in its way"
	}
	return d.notReached(err)
}

// awaitDirect waits a while for the punch.
func (d *Daemon) awaitDirect(ctx context.Context, p peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, directWait)
	defer cancel()
	changes, stop := d.node.Watch()
	defer stop()
	for {
		if _, ok := d.node.PathBy(p, node.Direct); ok {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
		}
	}
}

// measure is the asker's half, one direction. began is told when it is agreed on.
func (d *Daemon) measure(ctx context.Context, p peer.ID, kind node.PathKind, ask speedAsk, began func()) (bits int64, err error) {
	s, err := d.node.Open(ctx, p, speedProtocol, nil, kind)
	if err != nil {
		return 0, err
	}
	defer s.Reset()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	s.SetDeadline(time.Now().Add(speedGrace + ask.For))
	var answer speedAnswer
	if err = identity.WriteMsg(s, ask); err == nil {
		err = identity.ReadMsg(s, maxSpeedMsg, &answer)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s does not measure (an older fwd?): %w", d.nameOf(p), err)
	case answer.Refused == onlyMembers:
		return 0, fail(ExitRefused, "refused", "", "%s refused: %s", d.nameOf(p), answer.Refused)
	case answer.Refused != "": // for now
		return 0, fail(ExitUnreachable, "too-many", "ask again later", "%s refused: %s", d.nameOf(p), answer.Refused)
	}
	began()
	var count speedCount
	if ask.Up {
		pour(s, time.Now().Add(ask.For))
		s.SetReadDeadline(time.Now().Add(speedGrace))
		if err := identity.ReadMsg(s, maxSpeedMsg, &count); err != nil {
			return 0, fmt.Errorf("measure the way to %s: %w", d.nameOf(p), err)
		}
	} else {
		count = countFor(s, ask.For)
	}
	if count.Bytes <= 0 || count.In <= 0 || count.In > ask.For+speedGrace {
		return 0, fmt.Errorf("measure the way to %s: nothing came through", d.nameOf(p))
	}
	return int64(float64(count.Bytes) * 8 / count.In.Seconds()), nil
}
