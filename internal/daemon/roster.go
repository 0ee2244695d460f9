package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"fwd/identity"
)

// How the roster spreads: whoever has a connection asks the other end what it
// holds, and the newer one hands its roster over. That happens on every new
// connection, before a relay is asked for a reservation, and to everyone
// connected when this machine learns a new one. No server is needed.
//
//	asker    ▶ rosterHello        what I hold, perhaps a request
//	answerer ▶ rosterReply        what I hold, and what the asker has not; Want if it has more
//	asker    ▶ identity.RosterMsg my roster, if wanted
//	answerer closes

const rosterProtocol = protocol.ID("/fwd/roster/1")

// rosterTimeout bounds one exchange: two round trips and at most 2 MiB, on a
// link of 1 Mbit/s or a lossy one.
const rosterTimeout = 30 * time.Second

// maxHello bounds the messages that carry no roster.
const maxHello = 16 << 10

type rosterHello struct {
	Network   identity.NetworkID `json:"network"`
	Term      uint64             `json:"term"`
	Epoch     uint64             `json:"epoch"`
	Lacks     int                `json:"lacks,omitempty"` // slices of that roster
	Heartbeat []byte             `json:"heartbeat,omitempty"`
	Version   string             `json:"version,omitempty"`
	Boot      string             `json:"boot,omitempty"`    // of the asker's process
	Twin      string             `json:"twin,omitempty"`    // where another process with the answerer's key is connected from
	Request   *Request           `json:"request,omitempty"` // for the answerer to carry out
}

type rosterReply struct {
	identity.RosterMsg            // without Roster and Slices where the asker has them
	Version            string     `json:"version,omitempty"`
	Boot               string     `json:"boot,omitempty"`
	Want               bool       `json:"want,omitempty"`
	Gone               bool       `json:"gone,omitempty"`    // the asker is not on our roster, which is no older than its own
	Events             toldEvents `json:"events,omitempty"`  // the request's answer
	Failure            *Failure   `json:"failure,omitempty"` // or why not
}

// toldEvents are what another machine answers a request with, or says unasked.
type toldEvents []Event

const (
	maxToldEvents = 64
	maxToldBytes  = 1 << 20 // a list of a thousand invites
)

// UnmarshalJSON refuses more than an answer has, for events take much more room
// here than on the wire.
func (t *toldEvents) UnmarshalJSON(data []byte) (err error) {
	if len(data) > maxToldBytes {
		return fmt.Errorf("an answer of %d bytes, at most %d are taken: %w", len(data), maxToldBytes, identity.ErrTooLarge)
	}
	*t, err = identity.ReadList[Event](data, maxToldEvents)
	return err
}

// A sighting is what a peer said of itself when last met.
type sighting struct {
	at      time.Time
	version string
	epoch   uint64
}

func (d *Daemon) hello() rosterHello {
	s := d.book.Current()
	if s == nil {
		return rosterHello{Version: Version(), Boot: d.boot}
	}
	return rosterHello{Network: s.Network, Term: s.Term, Epoch: s.Epoch, Lacks: d.book.Lacks(),
		Heartbeat: d.book.Offer(d.self, time.Now()).Heartbeat, Version: Version(), Boot: d.boot}
}

// olderThan tells whether h's roster precedes one of term and epoch.
func (h rosterHello) olderThan(term, epoch uint64) bool {
	return h.Term < term || h.Term == term && h.Epoch < epoch
}

// poorerThan tells whether o's sender has what h's has not: a newer roster, or of the
// same one more slices.
func (h rosterHello) poorerThan(o rosterHello) bool {
	return h.olderThan(o.Term, o.Epoch) || h.Term == o.Term && h.Epoch == o.Epoch && h.Lacks > o.Lacks
}

// exchange compares rosters with p over a connection that is up.
func (d *Daemon) exchange(ctx context.Context, p peer.ID) error {
	_, err := d.rosterCall(ctx, p, d.hello())
	return err
}

// rosterCall is the asker's half.
func (d *Daemon) rosterCall(ctx context.Context, p peer.ID, mine rosterHello) (rosterReply, error) {
	var reply rosterReply
	ctx, cancel := context.WithTimeout(ctx, rosterTimeout)
	defer cancel()
	if mine.Network == "" {
		return reply, errNoNetwork
	}
	// A circuit will do, and no dial: exchanges follow connections.
	ctx = network.WithNoDial(network.WithAllowLimitedConn(ctx, "roster"), "roster")
	s, err := d.node.Host().NewStream(ctx, p, rosterProtocol)
	if err != nil {
		return reply, fmt.Errorf("compare rosters with %s: %w", d.nameOf(p), err)
	}
	defer s.Close()
	deadline, _ := ctx.Deadline()
	s.SetDeadline(deadline)
	err = identity.WriteMsg(s, mine)
	if err == nil {
		err = identity.ReadMsg(s, identity.MaxRosterMsg, &reply)
	}
	if err == nil && reply.Want {
		err = identity.WriteMsg(s, d.book.Offer(p, time.Now()))
	}
	if err != nil {
		s.Reset()
		return reply, fmt.Errorf("compare rosters with %s: %w", d.nameOf(p), err)
	}
	if reply.Gone {
		d.gone(p)
		return reply, errGone
	}
	d.learn(p, reply.RosterMsg, reply.Version)
	return reply, nil
}

// gone: p has a roster that we are not on. Only p's own word ends what we have
// with p: a hostile relay must not be able to end sessions with others.
func (d *Daemon) gone(p peer.ID) {
	d.cut(func(q peer.ID, _, _ string, _ bool) bool { return p == q }, errRevoked)
	s := d.book.Current()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leaving {
		return // leave ends what is wished here, when the network is forgotten
	}
	level := slog.LevelDebug // it is said at every meeting, each few seconds
	if !d.doubted {
		level = slog.LevelWarn
	}
	d.log.Log(context.Background(), level, "this machine is not on the roster any more", "says", d.nameOf(p))
	d.doubted = true
	if s == nil || p != s.Owner {
		return
	}
	// The owner's word is final: what is wished here has no hope.
	d.expelled = true
	for f := range d.forwards {
		f.end(errExpelled)
	}
	for s := range d.socks {
		s.end(errExpelled)
	}
	for _, svc := range d.services {
		svc.end(errExpelled)
	}
}

// roster is the one in force, or errNoNetwork. What takes long asks anew: the network
// may be left meanwhile.
func (d *Daemon) roster() (*identity.Sealed, error) {
	if s := d.book.Current(); s != nil {
		return s, nil
	}
	return nil, errNoNetwork
}

// belongs is roster for those who may hope: it fails also where this machine is off it.
func (d *Daemon) belongs() (*identity.Sealed, error) {
	s, err := d.roster()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expelled {
		return nil, errExpelled
	}
	return s, nil
}

// serveRoster is the answerer's half. A stranger is told nothing but that it is
// one, and may hand over a roster that is newer than ours and names it.
func (d *Daemon) serveRoster(s network.Stream) {
	defer s.Close()
	p := s.Conn().RemotePeer()
	if !d.member(p) {
		leave, ok := d.rosters.enter(s.Conn(), false)
		if !ok {
			s.Reset()
			return
		}
		defer leave()
	}
	s.SetDeadline(time.Now().Add(rosterTimeout))
	var theirs rosterHello
	if identity.ReadMsg(s, maxHello, &theirs) != nil {
		s.Reset()
		return
	}
	current := d.book.Current()
	if current == nil || theirs.Network != current.Network {
		s.Reset()
		return
	}
	reply := rosterReply{Want: d.hello().olderThan(theirs.Term, theirs.Epoch)}
	if d.book.Member(p, time.Now()) {
		reply.Want = d.hello().poorerThan(theirs)
		reply.Version, reply.Boot = Version(), d.boot
		d.greeted(s.Conn(), theirs)
		if theirs.Request != nil {
			// Before the offer, so that the asker sees the outcome at once.
			defer d.parted(p)
			reply.Events, reply.Failure = d.carryOut(p, *theirs.Request)
		}
		reply.RosterMsg = d.book.Offer(p, time.Now())
		if !theirs.olderThan(reply.Term, reply.Epoch) {
			reply.Roster = nil
		}
		if !theirs.poorerThan(d.hello()) {
			reply.Slices = nil
		}
	} else if !reply.Want {
		reply.Gone = true // it knows the network's ID, so it belonged once
	}
	if identity.WriteMsg(s, reply) != nil {
		s.Reset()
		return
	}
	if r := theirs.Request; r != nil && r.Command == "leave" && reply.Failure == nil && !reply.Want {
		s.Read(make([]byte, 1)) // the stream's end: it has read the answer
	}
	given := identity.RosterMsg{Term: theirs.Term, Epoch: theirs.Epoch, Heartbeat: theirs.Heartbeat}
	if reply.Want && d.readRoster(s, p, &given) != nil {
		s.Reset()
		return
	}
	d.learn(p, given, theirs.Version)
}

// readRoster reads what p hands over. Few may do so at a time: what they send is held
// before it is known to be worth anything. A stranger proves itself with the roster
// and its own slice alone.
func (d *Daemon) readRoster(s network.Stream, p peer.ID, given *identity.RosterMsg) error {
	if d.member(p) {
		ctx, cancel := context.WithTimeout(context.Background(), rosterTimeout)
		defer cancel()
		leave, err := d.readings.enter(ctx, p)
		if err != nil {
			return err
		}
		defer leave()
		return identity.ReadMsg(s, identity.MaxRosterMsg, given)
	}
	if d.proofs.Add(1) > maxProofs {
		d.proofs.Add(-1)
		return errBusy
	}
	defer d.proofs.Add(-1)
	if err := identity.ReadMsg(s, maxProof, given); err != nil {
		return err
	}
	given.Slices = given.Slices[:min(len(given.Slices), 1)]
	return nil
}

// While it is read and decoded, a message takes up to three times its size: of
// strangers 48 MiB at the most, of members 192 MiB.
const (
	maxProof  = 2 << 20 // a roster of 1 MiB in base64, with room to spare
	maxProofs = 8

	readingsAtOnce = 16 // the others wait, as a whole fleet may when it meets
	readingsOfOne  = 2  // or one that sends slowly would keep out the others
)

// learn takes what p offered, and notes that it was met.
func (d *Daemon) learn(p peer.ID, offer identity.RosterMsg, version string) {
	var err error
	if owner := d.currentOwner(); owner != nil && len(offer.Roster) > 0 {
		// A roster of our own key that we do not have: a restored backup, or the
		// key in two places. The owner settles it and signs the next.
		_, err = owner.Adopt(offer.Roster, d.now())
		if errors.Is(err, identity.ErrMoved) {
			err = d.retire(owner)
		}
		offer.Roster = nil
	}
	if _, taken := d.book.Take(offer); err == nil {
		err = taken
	}
	if err != nil && !errors.Is(err, identity.ErrOlder) {
		d.log.Warn("roster refused", "from", d.nameOf(p), "err", err)
	}
	if s := d.book.Current(); s != nil && d.book.Member(p, time.Now()) {
		d.mu.Lock()
		if p == s.Owner && offer.Epoch > 0 {
			d.expelled = false // it talks to us as to a member
		}
		d.seen[p] = sighting{at: time.Now(), version: clean(version, 32), epoch: offer.Epoch}
		d.mu.Unlock()
	}
}

// followRoster acts on every new roster until ctx ends: connections, relays
// and sessions that it does not allow end, and everyone connected is told.
func (d *Daemon) followRoster(ctx context.Context) error {
	changes, stop := d.book.Watch()
	defer stop()
	for {
		// An entry that expires is a change that nobody tells us of.
		expiry := d.book.NextExpiry(time.Now())
		look := time.NewTimer(expiryLook)
		if !expiry.IsZero() {
			look.Reset(min(expiryLook, max(time.Until(expiry), time.Millisecond)))
		}
		changed := false
		select {
		case <-ctx.Done():
			look.Stop()
			return ctx.Err()
		case <-changes:
			changed = true
		case <-look.C:
		}
		look.Stop()
		if changed || !expiry.IsZero() && !d.now().Before(expiry) {
			d.awaitPartings(ctx)
			d.enforce()
		}
		if changed {
			d.followHandOvers()
			d.tellEveryone()
		}
	}
}

// expiryLook is how often the clock is compared with the next expiry: a timer
// alone would miss that it was set, or that the machine slept.
const expiryLook = 20 * time.Second

// enforce ends what the roster or the lists no longer allow.
func (d *Daemon) enforce() {
	// The sessions first: their ends are told before the connections go.
	d.cut(func(p peer.ID, service, role string, udp bool) bool {
		switch {
		case !d.member(p):
			return true
		case role == "entry":
			return false // what a peer lets us use is decided there
		case service == "":
			return d.authorizeLane(p) != nil
		}
		_, err := d.lookupAt(p, service, udp)
		return err != nil
	}, errRevoked)
	d.node.Refresh()
	d.finder.Announce() // the discovery key may be a new one
	if d.relay != nil {
		d.relay.Refresh()
	}
}

// CodeRevoked: the owner has taken this machine off the roster.
const CodeRevoked = "revoked"

var (
	errBusy     = errors.New("too many at once")
	errRevoked  = errors.New("no longer allowed")
	errGone     = errors.New("this machine is not on the roster any more")
	errExpelled = fail(ExitRefused, CodeRevoked, "ask for a new invite (fwd invite, there): fwd join --file FILE",
		"the network's owner has taken this machine off the roster")
	errNoNetwork = fail(ExitUsage, "no-network", "fwd join INVITE, or make a network: fwd relay (on a VPS), fwd expose (on a LAN)",
		"this machine belongs to no network yet")
)

// heartbeats: the owner signs "epoch N at time T" each hour, so that nobody can
// withhold a revocation unseen; it travels with the exchanges.
func (d *Daemon) heartbeats(ctx context.Context) error {
	tick := time.NewTicker(identity.HeartbeatEvery)
	defer tick.Stop()
	for {
		d.mu.Lock()
		owner := d.owner
		d.mu.Unlock()
		if owner != nil {
			if _, err := owner.Heartbeat(d.now()); err != nil {
				d.log.Warn("sign the hourly heartbeat", "err", err)
			}
			d.tellEveryone()
		}
		for _, warning := range d.warnings(time.Now()) {
			d.log.Warn(warning)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// retire: the network has another owner now, so the key here no longer counts.
func (d *Daemon) retire(owner *identity.Owner) error {
	d.mu.Lock()
	d.owner = nil
	d.mu.Unlock()
	return owner.Retire()
}

// nameOf is how a peer is called in messages: its machine's name, else its ID.
func (d *Daemon) nameOf(p peer.ID) string {
	if s := d.book.Current(); s != nil {
		if e, ok := s.Entry(p); ok && e.Name != "" {
			return e.Name
		}
	}
	return p.String()
}
