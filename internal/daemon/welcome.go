package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
	"fwd/internal/node"
)

// A new relay can dial nobody where the network's owner is behind NAT and there
// is no relay yet. So it waits, and the owner dials it:
//
//	fwd invite --relay --at HOST    the owner makes the code, and dials HOST until it is used or expires
//	fwd relay CODE                  listens under a key made of the code, to which it admits the owner alone
//
//	owner ▶ relay   a stream of welcomeProtocol
//	relay ▶ owner   its join request
//	owner ▶ relay   the reply, as to any joiner, the relay's addresses on the roster already
//	relay ▶ owner   true: it has that on its disk
//
// Both have proved themselves by then: the relay holds the code, the owner is
// the peer that the code names. The relay then starts anew under its own key.

const welcomeProtocol = protocol.ID("/fwd/welcome/1")

const (
	// welcomeFirst and welcomeLast bound the pause between two dials: somebody may
	// sit at the relay's terminal.
	welcomeFirst = time.Second
	welcomeLast  = 5 * time.Second
)

// welcomes are the dials to relays that wait.
type welcomes struct {
	news chan struct{} // an invite was made

	mu    sync.Mutex
	tries map[string]welcomeTry // by invite
}

type welcomeTry struct {
	at  []ma.Multiaddr
	err error // of the last dial; nil: none has ended yet
}

func newWelcomes() *welcomes {
	return &welcomes{news: make(chan struct{}, 1), tries: map[string]welcomeTry{}}
}

// followWelcomes dials the relays that wait, until ctx ends. A background
// daemon stays for it.
func (d *Daemon) followWelcomes(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		if owner := d.currentOwner(); owner != nil {
			for _, w := range owner.Waiting(d.now()) {
				if d.welcomes.begin(w) {
					all.Go(func() {
						defer d.wish()()
						defer d.welcomes.end(w)
						d.welcome(ctx, owner, w)
					})
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.welcomes.news:
		}
	}
}

// welcome dials one until it has joined or its invite has ended. Used is not ended: the
// relay may have lost the answer.
func (d *Daemon) welcome(ctx context.Context, owner *identity.Owner, w identity.Waiting) {
	for pause := welcomeFirst; ; pause = min(2*pause, welcomeLast) {
		name, err := d.welcomeOnce(ctx, owner, w.Joiner)
		if err == nil {
			d.log.Info("a new relay has joined", "as", name, "at", addrWords(w.Joiner.Addrs))
			return
		}
		d.welcomes.failed(w, err)
		d.log.Info("the new relay does not answer yet", "at", addrWords(w.Joiner.Addrs), "err", err, "again_in", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		cancelled := slices.ContainsFunc(owner.Invites(), func(i identity.InviteInfo) bool { return i.ID == w.Invite && i.Uses == 0 })
		if cancelled || !d.now().Before(w.Expires) || d.currentOwner() != owner {
			return
		}
	}
}

func (d *Daemon) welcomeOnce(ctx context.Context, owner *identity.Owner, relay peer.AddrInfo) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	release := d.node.AllowStranger(relay.ID, joinTimeout)
	defer release()
	if err := d.node.ConnectStranger(ctx, relay); err != nil {
		return "", err
	}
	s, err := d.node.Host().NewStream(ctx, relay.ID, welcomeProtocol)
	if err != nil {
		return "", fmt.Errorf("ask the relay for its request: %w", err)
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(joinTimeout))
	var request []byte
	if err := identity.ReadMsg(s, 2*identity.MaxJoinRequest, &request); err != nil {
		return "", fmt.Errorf("read the relay's request: %w", err)
	}
	// The request proves the joiner; this connection proved no more than its code.
	reply, refused := owner.Join(request, "", d.now())
	if len(reply) == 0 {
		return "", refused
	}
	if err := errors.Join(identity.WriteMsg(s, reply), refused); err != nil {
		return "", err
	}
	var joined peer.ID
	if err := identity.ReadMsg(s, maxHello, &joined); err != nil {
		return "", fmt.Errorf("wait until the relay has joined: %w", err)
	}
	return d.nameOf(joined), nil
}

func (w *welcomes) begin(waits identity.Waiting) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, is := w.tries[waits.Invite]; is {
		return false
	}
	w.tries[waits.Invite] = welcomeTry{at: waits.Joiner.Addrs}
	return true
}

func (w *welcomes) failed(waits identity.Waiting, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries[waits.Invite] = welcomeTry{at: waits.Joiner.Addrs, err: err}
}

func (w *welcomes) end(waits identity.Waiting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tries, waits.Invite)
}

// wake says that there may be another relay to dial.
func (w *welcomes) wake() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// warnings are the relays that were dialled in vain so far.
func (w *welcomes) warnings() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []string{}
	for _, t := range w.tries {
		if t.err != nil {
			list = append(list, fmt.Sprintf("the new relay at %s does not answer yet; it is dialled on: does `fwd relay CODE` run there, and are its ports open? (relay-waited-for)", addrWords(t.at)))
		}
	}
	slices.Sort(list)
	return list
}

// awaitOwner is the relay's half, before it runs under its own key: with an
// invite that says so it listens until the owner has dialled, and joins.
func (d *Daemon) awaitOwner(ctx context.Context, plan *relayPlan, emit func(Event)) error {
	invite, err := identity.ParseInvite(plan.req.Invite)
	if err != nil {
		return nil // join says what is wrong with it
	}
	at, waits := invite.Waits()
	s := d.book.Current()
	switch {
	case !waits || s != nil && s.Network == invite.Network():
		return nil
	case s != nil && !d.onlyOurs(s):
		return belongsElsewhere(s)
	}
	door, err := invite.DoorKey()
	if err != nil {
		return err
	}
	if err := checkRelayPorts(plan.listen); err != nil {
		return err
	}
	n, err := node.New(node.Config{
		Key: door, Relay: true, Listen: plan.listen, Announce: plan.announce, Log: d.log,
		Member: func(p peer.ID) bool { return p == invite.Owner() },
		Relays: func() []peer.AddrInfo { return nil },
	})
	if err != nil {
		return fmt.Errorf("wait for the network's owner: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	joined := make(chan error, 1)
	n.Host().SetStreamHandler(welcomeProtocol, func(s network.Stream) {
		err := d.beWelcomed(s, invite, plan.req.Name)
		if err != nil {
			d.log.Warn("join at the owner's call", "err", err)
		}
		if err == nil || failureOf(err).Exit == ExitRefused {
			select {
			case joined <- err:
			default:
			}
		}
	})
	go func() { served <- n.Serve(ctx) }()
	emit(Event{Event: "waiting", Addrs: words(at), Message: "waiting for the network's owner to dial " + addrWords(at) + "; open these ports, UDP and TCP, in the firewall and the provider's"})
	select {
	case err = <-joined:
	case <-ctx.Done():
		err = ctx.Err()
	}
	cancel()
	return errors.Join(err, <-served)
}

// beWelcomed joins over the owner's stream. A failure that cannot be mended by
// the owner's dialling again is an ExitRefused.
func (d *Daemon) beWelcomed(s network.Stream, invite identity.Invite, as string) error {
	defer s.Reset()
	s.SetDeadline(time.Now().Add(joinTimeout))
	if as == "" {
		as = hostName()
	}
	request, finish, err := invite.Request(d.key, as)
	if err != nil {
		return err
	}
	var reply []byte
	if err := errors.Join(identity.WriteMsg(s, request), identity.ReadMsg(s, 2*identity.MaxJoinReply, &reply)); err != nil {
		return err
	}
	sealed, name, err := finish(reply)
	if err != nil {
		return inviteFailure(err)
	}
	if err := d.enterNetwork(sealed); err != nil {
		return err
	}
	d.log.Info("joined", "network", sealed.Name, "as", name)
	if err := identity.WriteMsg(s, d.self); err != nil {
		return nil // the owner's trouble: it sees us on its roster
	}
	s.CloseWrite()
	var eof [1]byte
	s.Read(eof[:]) // until it has read that; the connection ends with us
	return nil
}
