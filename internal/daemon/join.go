package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
	"fwd/internal/node"
)

// How a machine gets on the roster: it dials whom the invite names, the owner
// or a relay, and sends a request that only the owner can read. A relay hands
// the bytes on as they are.

const joinProtocol = protocol.ID("/fwd/join/1")

// joinTimeout: the owner writes to its disk, perhaps behind a relay.
const joinTimeout = 30 * time.Second

// join carries out `fwd join`.
func (d *Daemon) join(ctx context.Context, req JoinRequest, emit func(Event)) error {
	if req.At != "" {
		return d.joinAt(ctx, req.At, emit)
	}
	s := d.book.Current()
	if req.Invite == "" {
		if s == nil {
			return usage("fwd invite, on the network's owner or an admin, prints one", "no invite given")
		}
		if _, err := d.belongs(); err != nil {
			return err
		}
		return d.joined(emit, true)
	}
	invite, err := identity.ParseInvite(req.Invite)
	if err != nil {
		return fail(ExitRefused, "invite-damaged", "copy the whole code, from fwd1 to its end; or ask for another: fwd invite", "%v", err)
	}
	again := s != nil && s.Network == invite.Network()
	if _, waits := invite.Waits(); waits && !again {
		return usage("on the machine that is to be the relay: fwd relay INVITE", "this invite is for a new relay, which the network's owner dials")
	} else if waits {
		return d.joined(emit, true)
	}
	if again && d.settled(ctx, s) {
		d.meet(ctx, s, invite.Contact())
		return d.joined(emit, true)
	}
	if s != nil && !again && !d.onlyOurs(s) {
		return belongsElsewhere(s)
	}
	sealed, name, err := d.redeem(ctx, invite, req.As, emit)
	if err != nil {
		if _, hopeless := d.belongs(); again && d.member(d.self) && hopeless == nil {
			d.log.Info("the invite adds nothing", "err", err)
			return d.joined(emit, true)
		}
		return err
	}
	if err := d.enterNetwork(sealed); err != nil {
		return err
	}
	d.mu.Lock()
	d.expelled, d.doubted = false, false
	d.mu.Unlock()
	d.log.Info("joined", "network", sealed.Name, "as", name)
	d.enforce()
	return d.joined(emit, false)
}

// enterNetwork puts this machine on the network of sealed, in place of one that is only ours.
func (d *Daemon) enterNetwork(sealed *identity.Sealed) error {
	d.founding.Lock()
	defer d.founding.Unlock()
	if s := d.book.Current(); s != nil && s.Network != sealed.Network {
		if !d.onlyOurs(s) {
			return belongsElsewhere(s)
		}
		if err := d.forgetNetworkLocked(); err != nil {
			return err
		}
	}
	if err := d.book.Join(sealed); err != nil {
		return fmt.Errorf("keep the roster: %w", err)
	}
	return nil
}

// settled: this machine belongs to the network for good and as more than a guest,
// so another invite has nothing to add. A machine that was revoked may not know it:
// somebody is asked.
func (d *Daemon) settled(ctx context.Context, s *identity.Sealed) bool {
	e, ok := s.Entry(d.self)
	if !ok || s.For != "" || !e.Expires.IsZero() {
		return false
	}
	if s.Owner == d.self {
		return true
	}
	d.freshen(ctx, s)
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.expelled && !d.doubted
}

// meetWithin is how long whom an invite names may take to hand over the roster.
const meetWithin = 10 * time.Second

// meet asks whom an invite to our own network names for the newest roster: it may be a relay in the place of the only one
// that this machine knows. A stranger is told of ours that it exists, and no more.
func (d *Daemon) meet(ctx context.Context, s *identity.Sealed, contact peer.AddrInfo) {
	if contact.ID == d.self || d.member(contact.ID) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, meetWithin)
	defer cancel()
	err := d.node.ConnectStranger(ctx, contact)
	if err == nil {
		_, err = d.rosterCall(ctx, contact.ID, rosterHello{Network: s.Network, Version: Version(), Boot: d.boot})
	}
	if err != nil {
		d.log.Debug("the invite's contact tells no roster", "err", err)
	}
}

// redeem shows the invite to whoever it names and returns the roster that has us on it.
func (d *Daemon) redeem(ctx context.Context, invite identity.Invite, as string, emit func(Event)) (*identity.Sealed, string, error) {
	contact := invite.Contact()
	if contact.ID == d.self {
		return nil, "", usage("join on another machine, or with another FWD_HOME", "this invite is this machine's own")
	}
	if as == "" {
		as = hostName()
	}
	request, finish, err := invite.Request(d.key, as)
	if err != nil {
		return nil, "", fmt.Errorf("make the join request: %w", err)
	}
	emit(Event{Event: "progress", Message: "asking " + addrWords(contact.Addrs)})
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := d.node.ConnectStranger(ctx, contact); err != nil {
		d.log.Debug("the invite's contact is not reached", "err", err)
		at := d.triedWords(node.TriedIn(err))
		if at == "" {
			at = addrWords(contact.Addrs) + ": " + d.notReached(err)
		}
		return nil, "", fail(ExitUnreachable, "unreachable",
			"is fwd running there, and are these ports open, UDP and TCP? firewall of the VPS, and its provider's",
			"cannot reach the network at %s", at)
	}
	reply, err := d.joinCall(ctx, contact.ID, request)
	if err != nil && d.node.ConnectStrangerByTCP(ctx, contact) == nil {
		reply, err = d.joinCall(ctx, contact.ID, request)
	}
	if err != nil || len(reply) == 0 {
		return nil, "", fail(ExitRefused, "invite-refused", "ask for another: fwd invite",
			"the network did not answer this invite: it is not known there, or its owner is away")
	}
	sealed, name, err := finish(reply)
	if err != nil {
		return nil, "", inviteFailure(err)
	}
	return sealed, name, nil
}

// inviteFailure is why the owner did not let us in: ExitRefused where trying again is in vain.
func inviteFailure(err error) *Failure {
	code, hint := "invite-refused", "ask for another: fwd invite"
	switch {
	case errors.Is(err, identity.ErrOwnerFailed):
		return fail(ExitFailed, "failed", "see there: fwd logs; once that is mended, the same invite is good: fwd join INVITE", "%v", err)
	case errors.Is(err, identity.ErrNetworkFull):
		hint = "another invite is no better; on the owner, take off what is gone: fwd peers, fwd revoke PEER"
	case errors.Is(err, identity.ErrNewer):
		hint = "update fwd on this machine: fwd version"
	case errors.Is(err, identity.ErrInviteUsed):
		code = "invite-used"
	case errors.Is(err, identity.ErrInviteExpired):
		code = "invite-expired"
	}
	return fail(ExitRefused, code, hint, "%v", err)
}

// CodeElsewhere: the home is in another network than that of the invite.
const CodeElsewhere = "other-network"

func belongsElsewhere(s *identity.Sealed) *Failure {
	return fail(ExitUsage, CodeElsewhere, "fwd join -n NAME adds the other one; or leave this one first: fwd leave", "this machine already belongs to the network %q", s.Name)
}

// joinCall sends a request to p and reads the answer.
func (d *Daemon) joinCall(ctx context.Context, p peer.ID, request []byte) ([]byte, error) {
	s, err := d.node.Host().NewStream(network.WithAllowLimitedConn(ctx, "join"), p, joinProtocol)
	if err != nil {
		return nil, fmt.Errorf("ask %s to join: %w", p, err)
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(joinTimeout))
	if _, err := s.Write(request); err != nil {
		s.Reset()
		return nil, fmt.Errorf("ask %s to join: %w", p, err)
	}
	s.CloseWrite()
	reply, err := io.ReadAll(io.LimitReader(s, identity.MaxJoinReply))
	if err != nil {
		return nil, fmt.Errorf("ask %s to join: %w", p, err)
	}
	return reply, nil
}

// readRequestWithin is how long a join request may take to arrive: all of a
// stranger's time, which only grows when it has said something.
const readRequestWithin = 5 * time.Second

// serveJoin answers a request as the owner, or as a relay carries it to the owner.
func (d *Daemon) serveJoin(s network.Stream) {
	defer s.Close()
	p := s.Conn().RemotePeer()
	leave, ok := d.joins.enter(s.Conn(), d.member(p))
	if !ok {
		s.Reset()
		return
	}
	defer leave()
	s.SetDeadline(time.Now().Add(readRequestWithin))
	request, err := io.ReadAll(io.LimitReader(s, identity.MaxJoinRequest+1))
	if err != nil || len(request) > identity.MaxJoinRequest {
		s.Reset()
		return
	}
	release := d.node.AllowStranger(p, joinTimeout)
	defer release()
	s.SetDeadline(time.Now().Add(joinTimeout))
	var reply []byte
	if owner := d.currentOwner(); owner != nil {
		from := p
		if d.member(p) {
			from = "" // carried by a relay: the request itself proves the joiner
		}
		reply, err = owner.Join(request, from, d.now())
	} else if to, ok := d.carriesTo(p); ok {
		reply, err = d.carryJoin(to, request)
	}
	if err != nil {
		d.log.Info("join refused", "peer", p, "remote", s.Conn().RemoteMultiaddr(), "err", err)
	}
	if len(reply) == 0 {
		s.Reset()
		return
	}
	s.Write(reply)
}

// carriesTo: relays carry a request to the owner, and not each other's, which
// could go round in circles while they disagree on who the owner is.
func (d *Daemon) carriesTo(from peer.ID) (owner peer.ID, ok bool) {
	s := d.book.Current()
	if s == nil || d.relay == nil || s.Owner == from || s.Owner == d.self {
		return "", false
	}
	e, _ := s.Entry(from)
	return s.Owner, e.Caps&identity.Relay == 0
}

func (d *Daemon) carryJoin(owner peer.ID, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	defer cancel()
	if err := d.node.Connect(ctx, owner); err != nil {
		return nil, fmt.Errorf("carry a join to the owner: %w", err)
	}
	return d.joinCall(ctx, owner, request)
}

// joinAt: a relay has moved. Whoever answers at the new address must be one of
// the roster's relays; then its address is known, and its roster brings the rest.
func (d *Daemon) joinAt(ctx context.Context, at string, emit func(Event)) error {
	s, err := d.roster()
	if err != nil {
		return err
	}
	addrs, err := announceAddrs(at)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	others := slices.DeleteFunc(slices.Clone(s.Relays), func(r identity.RelayInfo) bool { return r.Peer == d.self })
	if len(others) == 0 {
		return usage("for a machine that is in no network yet: fwd join", "--at tells where a relay is now, and %q has no other relay than this machine", s.Name)
	}
	for _, r := range others {
		emit(Event{Event: "progress", Message: "asking for " + d.nameOf(r.Peer) + " at " + at})
		if err = d.node.ConnectAt(ctx, peer.AddrInfo{ID: r.Peer, Addrs: addrs}); err != nil {
			d.log.Debug("not reached", "peer", d.nameOf(r.Peer), "err", err)
			continue
		}
		if err := d.known.SetAddrs(r.Peer, addrs); err != nil {
			return fmt.Errorf("keep the relay's address: %w", err)
		}
		d.node.Refresh()
		return d.joined(emit, true)
	}
	return fail(ExitUnreachable, "unreachable", "is `fwd relay` running there, with its old home?", "no relay of this network answers at %s: %s", at, d.notReached(err))
}

func (d *Daemon) joined(emit func(Event), again bool) error {
	s, err := d.roster()
	if err != nil {
		return err
	}
	e, _ := s.Entry(d.self)
	return emitResult(emit, "joined", Joined{Network: s.Name, Name: e.Name, Peer: d.self.String(), Again: again})
}

// onlyOurs: the network is this machine's own and nobody else ever joined.
func (d *Daemon) onlyOurs(s *identity.Sealed) bool {
	return s.Owner == d.self && len(s.Entries) == 1
}

// hostName is this machine's name as a roster may have it.
func hostName() string {
	name, _ := os.Hostname()
	name, _, _ = strings.Cut(name, ".")
	return identity.CleanName(name)
}

// addrWords shows addresses as people write them: host:port, once each.
func addrWords(addrs []ma.Multiaddr) string {
	var words []string
	for _, a := range addrs {
		w := hostPort(a)
		found := false
		for _, have := range words {
			found = found || have == w
		}
		if !found {
			words = append(words, w)
		}
	}
	if len(words) == 0 {
		return "no address"
	}
	return strings.Join(words, ", ")
}
