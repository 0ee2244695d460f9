package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/identity"
)

// Requests between daemons ride on the roster exchange: they are the control
// API's own, carried out for the authenticated peer that asks.

// ClaimRequest asks the owner for the short name of a service. No command of
// its own: expose makes it.
type ClaimRequest struct {
	Service string `json:"service"`
	Release bool   `json:"release,omitempty"`
}

// mayAsk says which capability a peer needs to have a command carried out here.
var mayAsk = map[string]identity.Capability{
	"claim":    identity.Expose,
	"announce": identity.Relay,
	"leave":    identity.Use | identity.Expose | identity.Relay, // oneself
	"invite":   identity.Admin,
	"revoke":   identity.Admin,
	"rename":   identity.Admin,
	"allow":    identity.Admin,
}

// carryOut does p's request and collects the answer.
func (d *Daemon) carryOut(p peer.ID, req Request) ([]Event, *Failure) {
	s := d.book.Current()
	entry, ok := s.Entry(p)
	need, known := mayAsk[req.Command]
	if !ok || !known || entry.Caps&need == 0 && p != s.Owner {
		return nil, fail(ExitRefused, "refused", "ask the network's owner, or an admin", "%s may not ask %s for %s", d.nameOf(p), d.nameOf(d.self), req.Command)
	}
	ctx, cancel := context.WithTimeout(context.Background(), rosterTimeout)
	defer cancel()
	var events []Event
	emit := func(e Event) { events = append(events, e) }
	var err error
	switch req.Command {
	case "claim":
		err = with(req, func(r ClaimRequest) error { return d.grantClaim(p, r) })
	case "announce":
		err = with(req, func(r AnnounceRequest) error { return d.grantAnnounce(p, r) })
	case "leave":
		err = d.grantLeave(p)
	default:
		err = d.do(ctx, req, emit, nil)
	}
	if err != nil {
		return nil, failureOf(err)
	}
	d.log.Info("request carried out", "peer", d.nameOf(p), "command", req.Command)
	return events, nil
}

// grantClaim gives p the short name of its service, or takes it back.
func (d *Daemon) grantClaim(p peer.ID, claim ClaimRequest) error {
	owner := d.currentOwner()
	if owner == nil {
		return fail(ExitRefused, "not-owner", "", "%s does not own the network", d.nameOf(d.self))
	}
	if claim.Release {
		return owner.ReleaseService(p, claim.Service, d.now())
	}
	err := owner.ClaimService(p, claim.Service, d.now())
	if errors.Is(err, identity.ErrNameTaken) {
		return fail(ExitRefused, "name-taken", "", "the short name %q belongs to %s", claim.Service, d.nameOf(d.book.Current().Services[claim.Service]))
	}
	return err
}

// ask has p carry out a request; its events go to emit.
func (d *Daemon) ask(ctx context.Context, p peer.ID, command string, request any, emit func(Event)) error {
	args, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	if err := d.node.Connect(ctx, p); err != nil {
		return unreachable(d.nameOf(p), err)
	}
	hello := d.hello()
	hello.Request = &Request{API: APIVersion, Command: command, Args: args}
	reply, err := d.rosterCall(ctx, p, hello)
	if err != nil {
		return unreachable(d.nameOf(p), err)
	}
	if reply.Failure != nil {
		return reply.Failure
	}
	for _, e := range reply.Events {
		emit(e)
	}
	return nil
}

// asOwner runs f where the network key is: here, or by asking the owner, who
// carries it out if this machine is an admin.
func (d *Daemon) asOwner(ctx context.Context, command string, request any, emit func(Event), f func(*identity.Owner) error) error {
	s := d.book.Current()
	if s == nil {
		return errNoNetwork
	}
	if owner := d.currentOwner(); owner != nil {
		return f(owner)
	}
	if e, _ := s.Entry(d.self); e.Caps&identity.Admin == 0 {
		return fail(ExitRefused, "not-admin", "run it on "+d.admins(s), "this machine is neither the network's owner nor an admin")
	}
	return d.ask(ctx, s.Owner, command, request, emit)
}

// admins names the machines that may, for the hint.
func (d *Daemon) admins(s *identity.Sealed) string {
	names := []string{d.nameOf(s.Owner)}
	for _, e := range s.Entries {
		if e.Caps&identity.Admin != 0 && !slices.Contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	text := names[0]
	for _, n := range names[1:] {
		text += " or " + n
	}
	return text
}

func (d *Daemon) currentOwner() *identity.Owner {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.owner
}

func unreachable(name string, err error) *Failure {
	return fail(ExitUnreachable, "unreachable", "see which relays this machine has: fwd status", "%s cannot be reached now: %v", name, err)
}

// grantLeave takes a peer off the roster at its own wish.
func (d *Daemon) grantLeave(p peer.ID) error {
	owner := d.currentOwner()
	if owner == nil {
		return fail(ExitRefused, "not-owner", "", "%s does not own the network", d.nameOf(d.self))
	}
	return owner.Revoke(p, d.now())
}
