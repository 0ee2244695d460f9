package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"fwd/identity"
	"fwd/internal/node"
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
	"hand-on":  identity.Expose,                                 // one's own place
	"invite":   identity.Admin,
	"invites":  identity.Admin,
	"revoke":   identity.Admin,
	"rename":   identity.Admin,
	"allow":    identity.Admin,
	"succeed":  0, // the owner alone, whatever else its entry says

	"cancel-invite": identity.Admin,
}

// SucceedRequest hands the network key to the machine that is to be the owner.
// No command of its own: `fwd owner move` makes it.
type SucceedRequest struct {
	Key   []byte `json:"key"`
	Term  uint64 `json:"term,omitempty"` // of the roster to go on from; older owners name none
	Epoch uint64 `json:"epoch,omitempty"`
}

// carryOut does p's request and collects the answer. Only what this machine can
// do itself is done: nobody's wish is passed on under our own name.
func (d *Daemon) carryOut(p peer.ID, req Request) ([]Event, *Failure) {
	ctx, cancel := context.WithTimeout(context.Background(), rosterTimeout)
	defer cancel()
	if err := d.mayCarryOut(p, req.Command); err != nil {
		d.log.Warn("request refused", "peer", d.nameOf(p), "command", clean(req.Command, 40), "reason", err)
		return nil, fail(ExitRefused, "refused", "ask the network's owner, or an admin", "%s may not ask %s for %s", d.nameOf(p), d.nameOf(d.self), clean(req.Command, 40))
	}
	if err := d.asker(p).Wait(ctx); err != nil {
		return nil, fail(ExitUnreachable, "too-many", "ask again later", "%s asks %s for too much at once", d.nameOf(p), d.nameOf(d.self))
	}
	var events []Event
	emit := func(e Event) { events = append(events, e) }
	owner := d.currentOwner()
	if owner == nil && req.Command != "allow" && req.Command != "succeed" {
		return nil, fail(ExitRefused, "not-owner", "", "%s does not own the network", d.nameOf(d.self))
	}
	var err error
	switch req.Command {
	case "claim":
		err = with(req, func(r ClaimRequest) error { return d.grantClaim(owner, p, r) })
	case "announce":
		err = with(req, func(r AnnounceRequest) error { return d.grantAnnounce(owner, p, r) })
	case "leave":
		d.partFrom(p)
		err = owner.Leave(p, d.now())
	case "hand-on":
		err = with(req, func(r HandOnRequest) error { return d.grantHandOver(owner, p, r.Word) })
	case "succeed":
		err = with(req, func(r SucceedRequest) error { return d.succeed(ctx, p, r) })
	case "allow":
		err = with(req, func(r AllowRequest) error { return d.grantAllow(ctx, r, emit) })
	default:
		err = d.do(ctx, req, emit, nil)
	}
	if err != nil {
		return nil, failureOf(err)
	}
	d.log.Info("request carried out", "peer", d.nameOf(p), "command", req.Command)
	return events, nil
}

// mayCarryOut: does p's entry let it ask for the command?
func (d *Daemon) mayCarryOut(p peer.ID, command string) error {
	need, known := mayAsk[command]
	s := d.book.For(p)
	switch {
	case !known:
		return errors.New("no peer may")
	case !d.member(p) || s == nil:
		return errors.New("not on the roster")
	case need == identity.Admin:
		return identity.AuthorizeAdmin(s, d.now(), p)
	case need == 0 && p == s.Owner:
		return nil
	}
	if e, _ := s.Entry(p); e.Caps&need == 0 && p != s.Owner {
		return errors.New("its role is " + s.Role(p))
	}
	return nil
}

// Who leaves by its own request has the answer first: what the new roster does not
// allow ends then, its connections among it, and where the owner is a relay these are
// all it has.

// partingTime is how long the answer may take. A revocation may wait for it, so with
// that it must still be through within a second.
const partingTime = 500 * time.Millisecond

func (d *Daemon) partFrom(p peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.partings[p] == nil {
		d.partings[p] = make(chan struct{})
	}
}

// parted ends p's parting, if there is one.
func (d *Daemon) parted(p peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if parting := d.partings[p]; parting != nil {
		close(parting)
		delete(d.partings, p)
	}
}

// awaitPartings waits until all who are leaving have their answers, for partingTime at
// most, whoever else begins to leave meanwhile.
func (d *Daemon) awaitPartings(ctx context.Context) {
	d.mu.Lock()
	partings := slices.Collect(maps.Values(d.partings))
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, partingTime)
	defer cancel()
	for _, parting := range partings {
		select {
		case <-parting:
		case <-ctx.Done():
			return
		}
	}
}

// asker paces what one peer has done here: each change of the roster is a write
// to disk and news for everybody.
func (d *Daemon) asker(p peer.ID) *rate.Limiter {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.askers[p]
	if l == nil {
		l = rate.NewLimiter(rate.Every(time.Second), requestBurst)
		d.askers[p] = l
	}
	return l
}

// requestBurst is how many requests a peer has carried out at once; the next
// ones wait, a second each.
const requestBurst = 20

// grantAllow changes the list of a service of this very machine.
func (d *Daemon) grantAllow(ctx context.Context, req AllowRequest, emit func(Event)) error {
	s, err := d.roster()
	if err != nil {
		return err
	}
	if _, where, err := d.serviceHere(s, req.Service); err != nil {
		return err
	} else if where != d.self {
		return fail(ExitUnknownName, "unknown-name", "", "%s is no service of %s", clean(req.Service, 130), d.nameOf(d.self))
	}
	return d.allow(ctx, req, emit)
}

// grantClaim gives p the short name of its service, or takes it back.
func (d *Daemon) grantClaim(owner *identity.Owner, p peer.ID, claim ClaimRequest) error {
	if claim.Release {
		return owner.ReleaseService(p, claim.Service, d.now())
	}
	err := owner.ClaimService(p, claim.Service, d.now())
	if errors.Is(err, identity.ErrNameTaken) {
		s, err := d.roster()
		if err != nil {
			return err
		}
		holder, ok := s.Services[claim.Service]
		if !ok { // then it is a machine's
			return fail(ExitFailed, "name-taken", "", "%q is a machine's name", claim.Service)
		}
		return fail(ExitFailed, "name-taken", "", "the short name %q belongs to %s", claim.Service, d.nameOf(holder))
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
		return d.unreachable(d.nameOf(p), err)
	}
	hello := d.hello()
	hello.Request = &Request{API: APIVersion, Command: command, Args: args}
	reply, err := d.rosterCall(ctx, p, hello)
	if err != nil {
		return d.unreachable(d.nameOf(p), err)
	}
	if f := reply.Failure; f != nil {
		return &Failure{Code: clean(f.Code, 40), What: clean(f.What, maxTold), Hint: clean(f.Hint, maxTold), Exit: min(max(f.Exit, ExitFailed), ExitNoDaemon)}
	}
	for _, e := range reply.Events {
		// What another machine says is shown to a person: words alone.
		told := Event{Event: clean(e.Event, 20), Message: clean(e.Message, maxTold), Invite: clean(e.Invite, 4096),
			Peer: clean(e.Peer, 80), Machine: clean(e.Machine, 80)}
		if told.Event == "invites" {
			told.Result = cleanInvites(e.Result)
		}
		emit(told)
	}
	return nil
}

// maxTold bounds a sentence of another machine's.
const maxTold = 500

// clean is another machine's text as it may be shown on a terminal: printable,
// and at most max bytes.
func clean(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s[:min(len(s), max)])
	return strings.ToValidUTF8(s, "")
}

// asOwner runs f where the network key is: here, or by asking the owner, who
// carries it out if this machine is an admin.
func (d *Daemon) asOwner(ctx context.Context, command string, request any, emit func(Event), f func(*identity.Owner) error) error {
	s, err := d.roster()
	if err != nil {
		return err
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

// relayRefuses is the reason if it was a relay's word that kept us from a peer; else empty.
func (d *Daemon) relayRefuses(err error) string {
	var r *node.RelayRefusal
	if !errors.As(err, &r) {
		return ""
	}
	return "relay " + d.nameOf(r.Relay) + " refuses: " + r.Why
}

func (d *Daemon) unreachable(name string, err error) *Failure {
	d.log.Debug("not reached", "peer", name, "err", err)
	if why := d.relayRefuses(err); why != "" {
		return fail(ExitUnreachable, "unreachable", "on that relay: fwd status", "%s cannot be reached now: %s", name, why)
	}
	return fail(ExitUnreachable, "unreachable", "see which relays this machine has: fwd status", "%s cannot be reached now: %s", name, d.notReached(err))
}
