package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward"
	"fwd/identity"
)

// A service is one target exposed under a name, as long as the wish for it lasts.
type service struct {
	name   string
	target forward.Target
	words  []string // who may use it, as written
	fixed  []string // the same with peer IDs for names, as they were when it was written
	allow  identity.Allow
	hold   time.Duration
	from   string      // command, kept, config
	tell   func(Event) // of each session; nil: nobody asked
	end    context.CancelCauseFunc
}

// expose carries out `fwd expose` and lasts until ctx ends.
func (d *Daemon) expose(ctx context.Context, req ExposeRequest, from string, emit func(Event)) error {
	target, err := forward.ParseTarget(req.Target)
	if err != nil {
		return usage("a target is a port (22, 53/udp), a range (8000-8010), host:port, or unix:/path", "%v", err)
	}
	if err := d.checkHold(req.Hold); err != nil {
		return err
	}
	name := req.Name
	if name == "" {
		name = target.DefaultName()
	}
	if err := identity.CheckName(name); err != nil {
		return usage("choose another with --name", "%v", err)
	}
	if d.book.Current() == nil {
		// Before a network is made for it: the list must be right.
		if _, err := identity.ParseAllow(req.Allow, nil); err != nil {
			return usage("machines can be named once they have joined: fwd invite", "--allow: %v", err)
		}
	}
	if created, err := d.ensureNetwork("", identity.Member); err != nil {
		return err
	} else if created {
		emit(Event{Event: "progress", Message: "this machine belonged to no network, so it made one and owns it; to let another machine in: fwd invite"})
	}
	roster, err := d.roster()
	if err != nil {
		return err
	}
	if e, ok := roster.Entry(d.self); !ok || e.Caps&identity.Expose == 0 {
		return fail(ExitRefused, "refused", "ask "+d.admins(roster)+" for an invite that may: fwd invite",
			"this machine (%s) may not expose services in %q", d.nameOf(d.self), roster.Name)
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	svc := &service{name: name, target: target, words: req.Allow, hold: req.Hold, from: from, end: end}
	if len(svc.words) == 0 {
		svc.words = []string{"members"}
	}
	if req.Tell {
		svc.tell = emit
	}
	if err := d.addService(ctx, svc); err != nil {
		return err
	}
	defer d.removeService(svc)

	changes, stop := d.book.Watch()
	defer stop()
	long := name + "." + d.nameOf(d.self)
	names := []string{long}
	// A default name is not claimed: every machine has an ssh.
	claimed, note := req.Name == "", ""
	if !claimed {
		if claimed, note = d.claim(ctx, name); claimed {
			names = []string{name, long}
		}
		if note != "" {
			emit(Event{Event: "progress", Message: note})
		}
	}
	d.log.Info("exposed", "service", name, "target", target)
	emit(Event{Event: "exposed", Service: name, Target: target.String(), Peer: d.self.String(),
		Machine: d.nameOf(d.self), Names: names})
	if !claimed && d.awaitName(ctx, changes, name) {
		emit(Event{Event: "progress", Service: name, Message: name + " is this machine's now: fwd connect " + name})
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// addService puts svc on offer. Its name must be free on this machine.
func (d *Daemon) addService(ctx context.Context, svc *service) error {
	var err error
	if svc.fixed, err = d.fixWords(ctx, svc.name, svc.words); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.services[svc.key()]; old != nil {
		return usage("choose another with --name, or end it: fwd unexpose "+svc.name,
			"%q is already exposed on this machine (target %s)", svc.name, old.target)
	}
	if svc.allow, err = d.allowFor(svc); err != nil {
		return err
	}
	d.services[svc.key()] = svc
	return nil
}

// changeService gives a service that is on offer another target or other
// users. Its connections go on, but for those whose user may no longer.
func (d *Daemon) changeService(req ExposeRequest) error {
	target, err := forward.ParseTarget(req.Target)
	if err != nil {
		return usage("a target is a port (22, 53/udp), a range (8000-8010), host:port, or unix:/path", "%v", err)
	}
	if err := d.checkHold(req.Hold); err != nil {
		return err
	}
	words := req.Allow
	if len(words) == 0 {
		words = []string{"members"}
	}
	name := exposeName(req)
	fixed, err := d.fixWords(context.Background(), name, words)
	if err != nil {
		return err
	}
	d.mu.Lock()
	if svc := d.services[serviceKey(name, target.UDP())]; svc != nil {
		var allow identity.Allow
		if allow, err = d.allowFor(&service{name: name, fixed: fixed}); err == nil {
			svc.target, svc.words, svc.fixed, svc.allow, svc.hold = target, words, fixed, allow, req.Hold
		}
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	d.log.Info("service changed", "service", name, "target", target)
	d.enforce()
	return nil
}

// removeService takes it off and resets its sessions: the target they talk to
// is no longer on offer.
func (d *Daemon) removeService(svc *service) {
	d.mu.Lock()
	delete(d.services, svc.key())
	d.mu.Unlock()
	d.cut(func(_ peer.ID, service, role string, udp bool) bool {
		return role == "exit" && serviceKey(whole(service), udp) == svc.key()
	}, errors.New("no longer exposed"))
}

// fixWords resolves a service's own list, once: a name that changes hands later
// takes no access with it, and one that is gone later spoils nothing.
func (d *Daemon) fixWords(ctx context.Context, name string, words []string) ([]string, error) {
	list, err := d.parseAllow(ctx, words)
	if errors.Is(err, identity.ErrUnknownName) {
		return nil, fail(ExitUnknownName, "unknown-name", "machines are listed by: fwd peers", "who may use %s: %v", name, err)
	} else if err != nil {
		return nil, usage(whoHint, "who may use %s: %v", name, err)
	}
	return list.Words(), nil
}

// whoHint names what may stand in a list.
const whoHint = "a machine as fwd peers lists it, a peer ID, tag:T or members"

// parseAllow reads a list; an unknown name is looked for in the newest roster first.
func (d *Daemon) parseAllow(ctx context.Context, words []string) (identity.Allow, error) {
	s, err := d.roster()
	if err != nil {
		return identity.Allow{}, err
	}
	list, err := identity.ParseAllow(words, s.Roster)
	if errors.Is(err, identity.ErrUnknownName) {
		if newer := d.freshen(ctx, s); newer != nil {
			list, err = identity.ParseAllow(words, newer.Roster)
		}
	}
	return list, err
}

// allowFor is who may use svc: its own words, what `fwd allow` added, and above
// both what `fwd deny` said. Under Daemon.mu, or of two changes at once the
// earlier one could have the last word.
func (d *Daemon) allowFor(svc *service) (identity.Allow, error) {
	words := slices.Clone(svc.fixed)
	d.state.get(func(s stateFile) {
		words = append(words, s.Allowed[svc.name]...)
		for _, w := range s.Denied[svc.name] {
			words = append(words, "!"+w)
		}
	})
	allow, err := identity.ParseAllow(words, nil)
	if err != nil {
		return allow, usage("repair the lists in "+d.state.path, "who may use %s: %v", svc.name, err)
	}
	return allow, nil
}

// lookup is the exit's question: may p use the service, and where is it?
func (d *Daemon) lookup(p peer.ID, name string) (forward.Target, error) {
	return d.lookupNew(p, name, false)
}

// lookupNew is lookupAt for what begins now: with strict, the owner must not have
// been silent for long, for it may have revoked p meanwhile. What is open goes on.
func (d *Daemon) lookupNew(p peer.ID, name string, udp bool) (forward.Target, error) {
	target, err := d.lookupAt(p, name, udp)
	if err != nil {
		return forward.Target{}, err
	}
	if silent := d.ownerSilent(); d.strict.Load() && silent >= identity.StaleRefuse {
		return forward.Target{}, &identity.DeniedError{Peer: p, Service: name,
			Reason: "the network's owner has not been heard of for " + plainSpan(silent) + ", and this machine is strict"}
	}
	return target, nil
}

func (d *Daemon) lookupAt(p peer.ID, name string, udp bool) (forward.Target, error) {
	name, port := splitPort(name)
	d.mu.Lock()
	svc := d.services[serviceKey(name, udp)]
	var allow identity.Allow
	var target forward.Target
	if svc != nil {
		allow, target = svc.allow, svc.target
	}
	d.mu.Unlock()
	if svc == nil {
		return forward.Target{}, errors.New("no such service here") // its name is the peer's choice and may be long
	}
	if err := identity.Authorize(d.book.For(p), d.now(), p, d.self, name, allow); err != nil {
		return forward.Target{}, err
	}
	one, ok := target.At(port)
	if !ok {
		return forward.Target{}, fmt.Errorf("%s has %d port(s), and none of them was asked for", serviceKey(name, udp), 1+target.More)
	}
	return one, nil
}

// checkHold refuses a hold that would not be had: a service can only want less than all connections have here. The
// machine that connects has a limit of its own, which is not known to us; whichever end's is over first ends them.
func (d *Daemon) checkHold(hold time.Duration) error {
	if hold <= d.maxHold {
		return nil
	}
	return usage(fmt.Sprintf(`what fwd up holds is set in fwd.toml, under [limits]: hold = "%s", at the connecting machines too`, plainDuration(hold)),
		"--hold %s: this machine holds no connection for longer than %s", plainDuration(hold), plainDuration(d.maxHold))
}

// holdFor is how long the service's connections outlive an outage; 0: as all.
func (d *Daemon) holdFor(name string) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if svc := d.services[whole(name)]; svc != nil {
		return svc.hold
	}
	return 0
}

// claimWait is how long expose waits for the owner's word on a short name
// before it goes on without: over a relay it takes two round trips.
const claimWait = 3 * time.Second

// claim gets the short name from the network's owner. Without the owner the
// long form works, and the claim is repeated with the next expose.
func (d *Daemon) claim(ctx context.Context, name string) (claimed bool, note string) {
	roster, err := d.roster()
	if err != nil {
		return false, "" // the service ends with the network
	}
	if holder, ok := roster.Services[name]; ok && holder == d.self {
		return true, ""
	}
	if owner := d.currentOwner(); owner != nil {
		err = owner.ClaimService(d.self, name, d.now())
	} else {
		ctx, cancel := context.WithTimeout(ctx, claimWait)
		defer cancel()
		err = d.ask(ctx, roster.Owner, "claim", ClaimRequest{Service: name}, func(Event) {})
	}
	var f *Failure
	switch {
	case err == nil:
		return true, ""
	case errors.Is(err, identity.ErrNameTaken), errors.As(err, &f) && f.Code == "name-taken":
		return false, fmt.Sprintf("%v; here it is %s.%s", err, name, d.nameOf(d.self))
	default:
		return false, fmt.Sprintf("the network's owner (%s) is away, so the short name waits; %s.%s works", d.nameOf(roster.Owner), name, d.nameOf(d.self))
	}
}

// unexpose ends a service, whichever terminal it was exposed in.
func (d *Daemon) unexpose(ctx context.Context, req UnexposeRequest, emit func(Event)) error {
	stood, inConfig, err := d.forget(req)
	if err != nil {
		return err
	}
	d.mu.Lock()
	services := d.servicesLocked(req.Name)
	last := len(d.servicesLocked(withoutKind(req.Name))) == len(services) // of its name
	d.mu.Unlock()
	if len(services) == 0 && !req.Release && !stood {
		return fail(ExitUnknownName, "unknown-name", "see what is: fwd status", "%q is not exposed on this machine", req.Name)
	}
	for _, svc := range services {
		svc.end(errWishEnded)
	}
	if req.Release {
		if err := d.release(ctx, withoutKind(req.Name)); err != nil {
			return err
		}
	}
	told := req.Name + " is no longer exposed" + comesBack(inConfig)
	if last && !inConfig && !req.Release {
		told += d.stillHeld(withoutKind(req.Name))
	}
	emit(Event{Event: "result", Message: told})
	return nil
}

// stillHeld is what to know of a short name that this machine keeps though it exposes nothing by it.
func (d *Daemon) stillHeld(name string) string {
	s := d.book.Current()
	if s == nil || s.Services[name] != d.self {
		return ""
	}
	return "; the name stays this machine's, and to free it: fwd unexpose " + name + " --release"
}

// comesBack is what to know of a wish of the file's that another command ended.
func comesBack(inConfig bool) string {
	if !inConfig {
		return ""
	}
	return "; fwd.toml still has it, so the next reload or start brings it back"
}

func (d *Daemon) release(ctx context.Context, name string) error {
	roster, err := d.roster()
	if err != nil {
		return err
	}
	if owner := d.currentOwner(); owner != nil {
		return owner.ReleaseService(d.self, name, d.now())
	}
	return d.ask(ctx, roster.Owner, "claim", ClaimRequest{Service: name, Release: true}, func(Event) {})
}

// allow carries out `fwd allow` and `fwd deny`, here or on SERVICE.MACHINE.
func (d *Daemon) allow(ctx context.Context, req AllowRequest, emit func(Event)) error {
	roster, err := d.roster()
	if err != nil {
		return err
	}
	req.Service = withoutKind(req.Service) // a list is for both
	name, where, err := d.serviceHere(roster, req.Service)
	if err != nil {
		return err
	}
	if where != d.self {
		return d.ask(ctx, where, "allow", AllowRequest{Service: name + "." + d.nameOf(where), Who: req.Who, Deny: req.Deny}, emit)
	}
	if strings.HasPrefix(req.Who, "!") {
		return usage("fwd deny "+req.Service+" "+req.Who[1:], "say whom, and allow or deny")
	}
	list, err := d.parseAllow(ctx, []string{req.Who})
	if errors.Is(err, identity.ErrUnknownName) {
		return fail(ExitUnknownName, "unknown-name", "machines are listed by: fwd peers", "no machine %q in the network %q", req.Who, roster.Name)
	} else if err != nil {
		return usage(whoHint, "%v", err)
	}
	who := list.String() // names are resolved when they are written
	err = d.state.change(func(s *stateFile) {
		s.Allowed[name] = without(s.Allowed[name], who)
		s.Denied[name] = without(s.Denied[name], who)
		if req.Deny {
			s.Denied[name] = append(s.Denied[name], who)
		} else {
			s.Allowed[name] = append(s.Allowed[name], who)
		}
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	for _, svc := range d.servicesLocked(name) {
		if svc.allow, err = d.allowFor(svc); err != nil {
			svc.allow = identity.Allow{} // what cannot be read lets nobody in
		}
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	d.log.Info("access changed", "service", name, "who", req.Who, "deny", req.Deny)
	d.enforce()
	verb := "allows"
	if req.Deny {
		verb = "denies"
	}
	emit(Event{Event: "result", Service: name, Message: name + " " + verb + " " + req.Who + " now"})
	return nil
}

// allowWords are who may use svc, as people say it: its own words and what allow and
// deny said, machines by name. Under Daemon.mu.
func (d *Daemon) allowWords(svc *service) []string {
	list := slices.Clone(svc.words)
	add := func(mark, who string) {
		if p, err := peer.Decode(who); err == nil {
			who = d.nameOf(p)
		}
		if !slices.Contains(list, mark+who) {
			list = append(list, mark+who)
		}
	}
	d.state.get(func(s stateFile) {
		for _, who := range s.Allowed[svc.name] {
			add("", who)
		}
		for _, who := range s.Denied[svc.name] {
			add("!", who)
		}
	})
	return list
}

// serviceHere finds which machine's service is meant: a name exposed or listed
// here needs no machine.
func (d *Daemon) serviceHere(roster *identity.Sealed, name string) (string, peer.ID, error) {
	d.mu.Lock()
	here := d.servicesLocked(name)
	d.mu.Unlock()
	if len(here) > 0 {
		return name, d.self, nil
	}
	service, p, err := roster.Resolve(name)
	if err != nil {
		if identity.CheckName(name) == nil {
			return name, d.self, nil // not exposed now: the list waits for it
		}
		return "", "", unknownName(roster, name)
	}
	return service, p, nil
}

func without(list []string, word string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(w string) bool { return w == word })
}
