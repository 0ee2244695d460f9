package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
)

// The network and who belongs to it: what only the owner's machine can do, and
// admins have it do.

// ensureNetwork makes this machine the owner of a new network, where it is in none.
func (d *Daemon) ensureNetwork(name string, caps identity.Capability) (created bool, err error) {
	d.founding.Lock()
	defer d.founding.Unlock()
	if d.book.Current() != nil {
		return false, nil
	}
	owner, err := identity.CreateNetwork(d.home.State, d.book, cmp.Or(d.home.Network, "home"), d.self, cmp.Or(name, hostName()), caps|identity.Admin, d.now())
	if err != nil {
		return false, fmt.Errorf("create a network: %w", err)
	}
	d.own(owner)
	d.log.Info("network created", "network", owner.Network())
	return true, nil
}

// own has this machine act as the owner that it has become.
func (d *Daemon) own(owner *identity.Owner) {
	d.mu.Lock()
	d.owner = owner
	d.mu.Unlock()
	d.enforce()
}

// invite carries out `fwd invite`.
func (d *Daemon) invite(ctx context.Context, req InviteRequest, emit func(Event)) error {
	return d.asOwner(ctx, "invite", req, emit, func(owner *identity.Owner) error {
		opt, err := d.inviteOptions(req)
		if err != nil {
			return err
		}
		code, err := owner.Invite(opt, d.now())
		if err != nil {
			return fmt.Errorf("make an invite: %w", err)
		}
		d.welcomes.wake()
		emit(Event{Event: "invite", Invite: code.String(), Message: d.inviteStory(req, opt)})
		return nil
	})
}

func (d *Daemon) inviteOptions(req InviteRequest) (identity.InviteOptions, error) {
	opt := identity.InviteOptions{Uses: max(req.Uses, 1), Expires: req.Expires, For: req.For, Tags: req.Tags, Caps: identity.Member}
	for _, tag := range req.Tags {
		if err := identity.CheckName(tag); err != nil {
			return opt, usage("a tag is one word, like ops", "--tag: %v", err)
		}
	}
	if opt.Expires == 0 {
		opt.Expires = 24 * time.Hour
	}
	roster, err := d.roster()
	if err != nil {
		return opt, err
	}
	// Words that contradict each other are not weighed: half of what somebody meant
	// may be more than they meant.
	kinds := 0
	for _, is := range []bool{len(req.Only) > 0, req.Device, req.Relay && !req.Admin, req.Replace != ""} {
		if is {
			kinds++
		}
	}
	if kinds > 1 || kinds == 1 && req.Admin && !req.Relay || req.Replace != "" && (req.Relay || len(req.Tags) > 0) {
		return opt, usage("one of --only, --device, --relay, --admin; --replace takes what the machine had",
			"these do not go together in one invite")
	}
	switch {
	case len(req.Only) > 0:
		opt.Caps = identity.Use
		for _, word := range req.Only {
			service, p, err := roster.Resolve(word)
			if err != nil {
				return opt, unknownName(roster, word)
			}
			opt.Only = append(opt.Only, identity.Grant{Service: service, Peer: p})
		}
	case req.Device:
		opt.Caps = identity.Device
	case req.Relay:
		opt.Caps = identity.Relay
	}
	if req.Admin {
		opt.Caps |= identity.Member | identity.Admin
	}
	if req.Replace != "" {
		p, err := roster.ResolvePeer(req.Replace)
		if err != nil {
			return opt, d.noMachine(req.Replace, "fwd invite --replace PEER")
		}
		opt.Replace = p
	}
	if req.At != "" {
		if !req.Relay || opt.Uses > 1 {
			return opt, usage("fwd invite --relay --at HOST", "--at is where one new relay waits for this network's owner to dial it")
		}
		at, err := announceAddrs(req.At)
		opt.At = at
		return opt, err
	}
	opt.Via, opt.Addrs = d.contact(roster)
	if len(opt.Addrs) == 0 {
		return opt, fail(ExitFailed, "no-address", "start `fwd relay` on a VPS, or connect this machine to a LAN", "there is no address under which a new machine could reach this network")
	}
	return opt, nil
}

// contact is whom an invite names: a relay, or where the network has none the
// owner itself, at addresses that may be good on its LAN only.
func (d *Daemon) contact(roster *identity.Sealed) (via peer.ID, addrs []multiaddr) {
	for _, r := range roster.Relays {
		if r.Peer == d.self {
			return "", r.Addrs
		}
		if len(r.Addrs) > 0 {
			via, addrs = r.Peer, r.Addrs
		}
	}
	if via != "" {
		return via, addrs
	}
	for _, a := range d.node.Host().Addrs() {
		if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err != nil {
			addrs = append(addrs, a)
		}
	}
	return "", bestAddrs(inviteAddrs, addrs, nil, routedAddrs())
}

func (d *Daemon) inviteStory(req InviteRequest, opt identity.InviteOptions) string {
	uses := "one machine"
	if opt.Uses > 1 {
		uses = fmt.Sprintf("%d machines", opt.Uses)
	}
	story := fmt.Sprintf("lets %s in within %s", uses, plainDuration(opt.Expires))
	if len(opt.Only) > 0 {
		story += ", as a guest of " + strings.Join(req.Only, " and ")
	}
	if opt.For > 0 {
		story += ", for " + plainDuration(opt.For) + " from then on"
	}
	if opt.Replace != "" {
		story += ", in the place of " + d.nameOf(opt.Replace) + ", whose present key is out once the code is used"
	}
	if len(opt.At) > 0 {
		return story + ", as a relay at " + addrWords(opt.At) + ", which the network's owner dials until then; there, run: fwd relay CODE"
	}
	return story + "; there, run: fwd join"
}

// plainDuration is 24h and 90m where Go says 24h0m0s and 1h30m0s.
func plainDuration(t time.Duration) string {
	switch {
	case t >= time.Hour && t%time.Hour == 0:
		return fmt.Sprintf("%dh", t/time.Hour)
	case t >= time.Minute && t%time.Minute == 0:
		return fmt.Sprintf("%dm", t/time.Minute)
	}
	return t.String()
}

// revoke carries out `fwd revoke`.
func (d *Daemon) revoke(ctx context.Context, req RevokeRequest, emit func(Event)) error {
	return d.asOwner(ctx, "revoke", req, emit, func(owner *identity.Owner) error {
		p, err := d.resolvePeer(ctx, req.Peer, "fwd revoke PEER; if the service alone: fwd deny SERVICE.PEER WHO, or on PEER: fwd unexpose SERVICE")
		if err != nil {
			return err
		}
		if p == d.self {
			return usage("hand the network over first: fwd owner move PEER", "the owner cannot revoke itself")
		}
		name := d.nameOf(p)
		ended, err := owner.Revoke(p, d.now())
		if err != nil {
			return fmt.Errorf("revoke %s: %w", name, err)
		}
		d.log.Info("revoked", "peer", p, "name", name)
		emit(Event{Event: "result", Message: name + " is out of the network", Peer: p.String(), Machine: name})
		for _, i := range ended {
			d.log.Info("invite ended with its machine", "peer", p, "invite", i.ID)
			emit(Event{Event: "progress", Message: fmt.Sprintf("the invite it came by, %s, ends too, with %d of its %d uses left; for the next machine: fwd invite", i.ID, i.Uses-len(i.Used), i.Uses)})
		}
		return nil
	})
}

// rename carries out `fwd rename`.
func (d *Daemon) rename(ctx context.Context, req RenameRequest, emit func(Event)) error {
	return d.asOwner(ctx, "rename", req, emit, func(owner *identity.Owner) error {
		p, err := d.resolvePeer(ctx, req.Peer, "fwd rename PEER "+req.Name)
		if err != nil {
			return err
		}
		if err := identity.CheckName(req.Name); err != nil {
			return usage("lower-case letters, digits and hyphens", "%v", err)
		}
		if err := owner.Rename(p, req.Name, d.now()); errors.Is(err, identity.ErrNameTaken) {
			return fail(ExitFailed, "name-taken", "machines are listed by: fwd peers", "%v", err)
		} else if err != nil {
			return fmt.Errorf("rename %s: %w", d.nameOf(p), err)
		}
		emit(Event{Event: "result", Message: "it is " + req.Name + " now", Peer: p.String(), Machine: req.Name})
		return nil
	})
}

// resolvePeer finds the machine that a word means. A service's name means none here: who wants a service gone must not
// lose the machine. command is how to say it of the machine, for the hint.
func (d *Daemon) resolvePeer(ctx context.Context, word, command string) (peer.ID, error) {
	p, err := d.findPeer(ctx, word, (*identity.Roster).ResolvePeer)
	if errors.Is(err, identity.ErrUnknownName) {
		return "", d.noMachine(word, command)
	}
	return p, err
}

// findPeer looks a word up in the newest roster.
func (d *Daemon) findPeer(ctx context.Context, word string, lookUp func(*identity.Roster, string) (peer.ID, error)) (peer.ID, error) {
	roster, err := d.roster()
	if err != nil {
		return "", err
	}
	p, err := lookUp(roster.Roster, word)
	if err != nil {
		if newer := d.freshen(ctx, roster); newer != nil {
			p, err = lookUp(newer.Roster, word)
		}
	}
	return p, err
}

// noMachine is the error for a word that means no machine.
func (d *Daemon) noMachine(word, command string) error {
	roster, err := d.roster()
	if err != nil {
		return err
	}
	if service, p, err := roster.Resolve(word); err == nil {
		command = strings.NewReplacer("PEER", d.nameOf(p), "SERVICE", service).Replace(command)
		return fail(ExitUnknownName, "unknown-name", "if the machine is meant: "+command, "%s is a service of %s, not a machine", word, d.nameOf(p))
	}
	return fail(ExitUnknownName, "unknown-name", "machines are listed by: fwd peers", "no machine %q in the network %q", word, roster.Name)
}

// trust accepts that a pinned name means another key now.
func (d *Daemon) trust(req TrustRequest, emit func(Event)) error {
	roster, err := d.roster()
	if err != nil {
		return err
	}
	_, p, err := roster.Resolve(req.Name)
	if err != nil {
		return unknownName(roster, req.Name)
	}
	if err := d.known.Trust(req.Name, p, roster.Roster); err != nil {
		return fmt.Errorf("trust %s: %w", req.Name, err)
	}
	emit(Event{Event: "result", Message: fmt.Sprintf("%s is %s (%s) from now on", req.Name, d.nameOf(p), p), Peer: p.String()})
	return nil
}

// ownerExport carries out `fwd owner export`.
func (d *Daemon) ownerExport(req OwnerExportRequest, emit func(Event)) error {
	owner := d.currentOwner()
	if owner == nil {
		return fail(ExitRefused, "not-owner", "run it on the owner: fwd peers names it", "this machine does not hold the network key")
	}
	backup, err := owner.Export(req.Passphrase)
	if err != nil {
		return fmt.Errorf("export the network key: %w", err)
	}
	return emitResult(emit, "result", backup)
}

// ownerSign carries out `fwd owner sign`. All else that an owner signs is never before what it has signed already, as
// its clock may have been set back; here a person says that it is right.
func (d *Daemon) ownerSign(emit func(Event)) error {
	owner := d.currentOwner()
	if owner == nil {
		return fail(ExitRefused, "not-owner", "run it on the owner: fwd peers names it", "this machine does not hold the network key")
	}
	was, now := d.now(), time.Now()
	s, err := owner.Update(now, func(*identity.Roster) error { return nil })
	if err != nil {
		return fmt.Errorf("sign the roster anew: %w", err)
	}
	d.log.Info("roster signed anew", "epoch", s.Epoch, "at", now, "was", was)
	emit(Event{Event: "result", Message: fmt.Sprintf("signed at %s: epoch %d", now.UTC().Format("2006-01-02 15:04 UTC"), s.Epoch)})
	return nil
}

// ownerImport carries out `fwd owner import`. The newest roster that peers hold
// is adopted first, so that an old backup cannot fork the network.
func (d *Daemon) ownerImport(ctx context.Context, req OwnerImportRequest, emit func(Event)) error {
	if s := d.book.Current(); s != nil {
		if d.currentOwner() != nil {
			return usage("", "this machine already holds the key of %q", s.Name)
		}
		d.freshen(ctx, s)
	}
	d.founding.Lock()
	defer d.founding.Unlock()
	owner, err := identity.Import(d.home.State, d.book, req.Backup, req.Passphrase, d.self, d.now())
	if errors.Is(err, identity.ErrPassphrase) {
		return fail(ExitRefused, "passphrase", "try again; without its passphrase a backup is of no use", "the passphrase does not open this backup, or the backup is damaged")
	} else if err != nil {
		return usage("give it the file that fwd owner export wrote", "import the network key: %v", err)
	}
	d.own(owner)
	s, err := d.roster()
	if err != nil {
		return err
	}
	emit(Event{Event: "result", Message: fmt.Sprintf("this machine owns %q now (term %d)", s.Name, s.Term)})
	return nil
}

// ownerMove carries out `fwd owner move`: the other machine gets the key, signs
// the next term, and by that roster this one learns that it is the owner no more.
func (d *Daemon) ownerMove(ctx context.Context, req OwnerMoveRequest, emit func(Event)) error {
	owner := d.currentOwner()
	if owner == nil {
		return fail(ExitRefused, "not-owner", "run it on the owner: fwd peers names it", "this machine does not hold the network key")
	}
	p, err := d.resolvePeer(ctx, req.Peer, "fwd owner move PEER")
	if err != nil {
		return err
	}
	name := d.nameOf(p)
	if err := owner.MayMove(p); errors.Is(err, identity.ErrNotAllowed) {
		return usage("choose a member or relay that stays", "%s cannot be the owner: %v", name, err)
	} else if err != nil {
		return fmt.Errorf("move the network key: %w", err)
	}
	if err := d.node.Connect(ctx, p); err != nil {
		return d.unreachable(name, err)
	}
	key, stay, err := owner.Transfer(p, d.now())
	if err != nil {
		return fmt.Errorf("move the network key: %w", err)
	}
	defer stay() // if it does not take over
	s := d.book.Current()
	if err := d.exchange(ctx, p); err != nil { // it goes on from the newest roster
		return d.unreachable(name, err)
	}
	err = d.ask(ctx, p, "succeed", SucceedRequest{Key: key, Term: s.Term, Epoch: s.Epoch}, func(Event) {})
	s = d.book.Current()
	if s == nil || s.Owner != p {
		if err == nil {
			err = errors.New("it did not show the roster that says so")
		}
		return fail(ExitFailed, "not-moved", "if it took the key after all, both find out when they meet", "%s did not take over: %v", name, err)
	}
	emit(Event{Event: "result", Message: fmt.Sprintf("%s owns %q now; invites still open have ended; the key kept aside here is in %s: delete it when you need it no more",
		name, s.Name, d.home.file("network-"+string(s.Network)+".key")), Peer: p.String(), Machine: name})
	return nil
}

// succeed is the other machine's half.
func (d *Daemon) succeed(ctx context.Context, from peer.ID, req SucceedRequest) error {
	if err := d.awaitRoster(ctx, req.Term, req.Epoch); err != nil {
		return err
	}
	d.founding.Lock()
	defer d.founding.Unlock()
	owner, err := identity.Succeed(d.home.State, d.book, req.Key, from, d.self, d.now())
	if err != nil {
		return err
	}
	d.own(owner)
	d.log.Warn("this machine owns the network now", "from", d.nameOf(from))
	return nil
}

// awaitRoster waits for a roster that is under way: one that was sent is not yet read.
func (d *Daemon) awaitRoster(ctx context.Context, term, epoch uint64) error {
	changes, stop := d.book.Watch()
	defer stop()
	for {
		s := d.book.Current()
		if s == nil {
			return errNoNetwork
		}
		if s.Term > term || s.Term == term && s.Epoch >= epoch {
			return nil
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return fail(ExitUnreachable, "unreachable", "try again", "%s does not have roster %d.%d yet", d.nameOf(d.self), term, epoch)
		}
	}
}

// leave carries out `fwd leave`.
func (d *Daemon) leave(ctx context.Context, req LeaveRequest, emit func(Event)) error {
	s := d.book.Current()
	if s == nil && !req.Purge {
		return errNoNetwork
	}
	if s != nil && d.currentOwner() != nil && !d.onlyOurs(s) {
		return usage("keep the key first: fwd owner export, or hand over: fwd owner move PEER",
			"this machine owns %q, and %d others depend on its key", s.Name, len(s.Entries)-1)
	}
	told := ""
	if _, hopeless := d.belongs(); s != nil && s.Owner != d.self && hopeless == nil {
		// The owner takes us off the roster; where it is away we go all the same.
		d.setLeaving(true)
		defer d.setLeaving(false)
		ctx, cancel := context.WithTimeout(ctx, claimWait)
		defer cancel()
		if err := d.ask(ctx, s.Owner, "leave", LeaveRequest{}, func(Event) {}); err != nil {
			told = "; the owner was not reached, ask it for: fwd revoke " + d.nameOf(d.self)
		}
	}
	if err := d.forgetNetwork(); err != nil {
		return err
	}
	if req.Purge {
		if err := d.purge(); err != nil {
			return err
		}
	}
	d.enforce()
	d.mu.Lock()
	for f := range d.forwards {
		f.end(errWishEnded)
	}
	for s := range d.socks {
		s.end(errWishEnded)
	}
	for _, svc := range d.services {
		svc.end(errWishEnded)
	}
	d.mu.Unlock()
	if s != nil {
		emit(Event{Event: "result", Message: fmt.Sprintf("this machine has left %q", s.Name) + told})
	}
	if req.Purge {
		d.finish(errStopped) // the identity it runs with is gone
	}
	return nil
}

// forgetNetwork takes it off the disk; the identity key stays.
func (d *Daemon) forgetNetwork() error {
	d.founding.Lock()
	defer d.founding.Unlock()
	return d.forgetNetworkLocked()
}

func (d *Daemon) forgetNetworkLocked() error {
	if owner := d.currentOwner(); owner != nil {
		if err := d.retire(owner); err != nil {
			return fmt.Errorf("leave the network: %w", err)
		}
	}
	if err := errors.Join(d.book.Leave(), d.known.Forget()); err != nil {
		return fmt.Errorf("leave the network: %w", err)
	}
	return nil
}

// purge deletes what this machine is known by.
func (d *Daemon) purge() error {
	for _, name := range []string{"identity.key", "roster", "known", "daemon"} {
		if err := os.Remove(d.home.file(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("purge: %w", err)
		}
	}
	return nil
}

// setLeaving is for the time in which the roster may end without us while we still have it.
func (d *Daemon) setLeaving(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leaving = on
}
