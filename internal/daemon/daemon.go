// Package daemon is one running fwd: it holds the node, the sessions, the
// services exposed and the forwards connected here, and perhaps a relay, and
// answers the home's control socket.
//
// What happens to one command: cmd/fwd dials the socket (starting the daemon in
// the background if none runs), writes a request, and prints the events that
// come back. A command that holds something open, such as expose or connect,
// is a wish: it lasts as long as its connection, and the daemon ends a minute
// after the last one. Run is the same daemon in the foreground.
//
// What happens to one forwarded connection is not this package's: it walks
// from forward.Entry through session and libp2p to forward.Exit. Here it is
// only decided which entries and services there are and who may use them.
//
// The daemon does not parse flags, print, or know of a terminal.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"fwd/discovery"
	"fwd/forward"
	"fwd/forward/datagram"
	"fwd/forward/session"
	"fwd/identity"
	"fwd/internal/node"
	"fwd/relaynode"
)

// A Daemon is one running fwd.
type Daemon struct {
	home  Home
	log   *slog.Logger
	key   crypto.PrivKey
	self  peer.ID
	book  *identity.Book
	known *identity.Known
	state *state

	// Set by assemble, constant afterwards.
	node      *node.Node
	finder    *discovery.Finder
	dht       *dht.IpfsDHT
	sessions  *session.Endpoint
	datagrams *datagram.Endpoint
	relay     *relaynode.Relay // nil: this machine is none
	up        *up              // nil: not by `fwd up`
	level     *slog.LevelVar
	finish    context.CancelCauseFunc
	strict    atomic.Bool // refuse new connections without a fresh word of the owner
	traffic   traffic
	speeds    chan struct{} // measurements answered now
	room      localRoom

	boot           string       // of this very process, random
	twins          *twins       // machines met that share a key
	joins, rosters *lobby       // what strangers ask, and how often
	welcomes       *welcomes    // new relays that wait to be dialled
	proofs         atomic.Int64 // rosters of strangers being read
	readings       *turnstile   // of members' rosters
	compared       *comparisons // rosters, with whom now

	founding sync.Mutex // one change at a time of which network this is, and whose; before mu

	maxHold time.Duration // of each connection; since assemble

	mu       sync.Mutex
	owner    *identity.Owner     // nil: the network key is elsewhere
	services map[string]*service // by serviceKey
	forwards map[*forwarding]bool
	socks    map[*socks]bool
	seen     map[peer.ID]sighting
	expelled bool               // the owner said that we are off the roster
	doubted  bool               // somebody did
	leaving  bool               // by our own wish, so its word is no news
	offered  map[peer.ID]offers // what each exposed for us when last asked
	askers   map[peer.ID]*rate.Limiter
	partings map[peer.ID]chan struct{} // of who leaves; closed when it has its answer
	wishes   int
	idle     *time.Timer // ends the daemon; nil in the foreground
}

// options tell the background daemon and the foreground one apart.
type options struct {
	linger  time.Duration // end so long after the last wish; 0: never
	ready   func()        // the socket answers
	relay   *relayPlan    // nil: an ordinary peer
	up      *up           // nil: nothing stands but what clients wish
	metrics string        // where to serve them; empty: nowhere
	stderr  Stderr
	before  func(ctx context.Context, d *Daemon) error // the daemon is assembled; nil: nothing
	first   func(ctx context.Context, d *Daemon) error
}

// errLocked: another daemon has this home.
var errLocked = errors.New("another fwd daemon has this home")

// Run is the daemon in the foreground with one wish of its own, a
// RelayRequest, whose events go to on. It returns when ctx ends.
func Run(ctx context.Context, home Home, request RelayRequest, on func(Event)) error {
	plan, err := planRelay(request)
	if err != nil {
		return err
	}
	return foreground(ctx, home, options{
		relay:   plan,
		metrics: request.Metrics,
		stderr:  request.Stderr,
		before:  func(ctx context.Context, d *Daemon) error { return d.awaitOwner(ctx, plan, on) },
		first:   func(ctx context.Context, d *Daemon) error { return d.runRelay(ctx, plan, on) },
	})
}

// foreground is the daemon for a service manager, a container or a terminal.
func foreground(ctx context.Context, home Home, opt options) error {
	if err := yieldToForeground(ctx, home); err != nil {
		return err
	}
	err := run(ctx, home, opt)
	if errors.Is(err, errLocked) {
		return fail(ExitFailed, "already-running", "fwd status", "another fwd daemon runs in %s", home.State)
	}
	return err
}

// run is a daemon's life: lock the home, open what is on disk, assemble the
// rooms, serve until ctx ends or the last wish has.
func run(ctx context.Context, home Home, opt options) (err error) {
	if err := home.prepare(); err != nil {
		return err
	}
	lock, err := lockHome(ctx, home, opt.linger == 0)
	if err != nil {
		return err
	}
	defer lock.Unlock()

	ctx, finish := context.WithCancelCause(ctx)
	defer finish(nil)
	var c config
	if opt.up != nil {
		c = *opt.up.config
	}
	level := new(slog.LevelVar)
	level.Set(levelOf(&c))
	log, closeLog, err := openLog(home, c.Log, level, opt.stderr)
	if err != nil {
		return err
	}
	defer closeLog()
	d, err := open(home, log, level, finish)
	if err != nil {
		return err
	}
	scrapes, err := listenMetrics(opt.metrics)
	if err != nil {
		return err
	}
	if scrapes != nil {
		defer scrapes.Close()
	}
	d.strict.Store(c.Strict)
	if opt.before != nil {
		if err := opt.before(ctx, d); err != nil {
			return err
		}
	}
	if err := d.assemble(opt.relay, &c); err != nil {
		return err
	}
	socket, err := listenSocket(home)
	if err != nil {
		return err
	}
	defer os.Remove(home.Socket())

	d.log.Info("fwd runs", "version", Version(), "peer", d.self, "pid", os.Getpid(), "addrs", d.node.Host().Addrs())
	if opt.linger > 0 {
		d.idle = time.AfterFunc(opt.linger, func() { finish(nil) })
	}
	g, ctx := errgroup.WithContext(ctx)
	if opt.up != nil {
		opt.up.d, opt.up.ctx, d.up = d, ctx, opt.up
	}
	d.rooms(ctx, g)
	g.Go(func() error { return d.serveSocket(ctx, socket) })
	if scrapes != nil {
		g.Go(func() error { return d.serveMetrics(ctx, scrapes) })
	}
	if opt.ready != nil {
		opt.ready()
	}
	if opt.linger == 0 {
		d.notifyReady()
		g.Go(func() error { return d.feedWatchdog(ctx) })
	}
	if opt.first != nil {
		g.Go(func() error { return opt.first(ctx, d) })
	}
	err = errors.Join(g.Wait(), d.dht.Close())
	d.log.Info("fwd ends", "err", err)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// lockHome takes the home's lock. patient: it waits for a daemon that is ending, which
// answers no more and has the lock still.
func lockHome(ctx context.Context, home Home, patient bool) (*flock.Flock, error) {
	lock := flock.New(home.file("fwd.lock"))
	for end := time.Now().Add(stopTimeout); ; {
		ok, err := lock.TryLock()
		switch {
		case err != nil:
			return nil, fmt.Errorf("lock %s: %w", home.State, err)
		case ok:
			return lock, nil
		case !patient || time.Now().After(end):
			return nil, errLocked
		}
		if c, err := reach(ctx, home); err == nil {
			c.Close()
			return nil, errLocked
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// AwaitEnd waits until no daemon has the home.
func AwaitEnd(ctx context.Context, home Home) error {
	for {
		c, err := reach(ctx, home)
		if err == nil {
			c.Close()
		} else if errors.Is(err, ErrNoDaemon) {
			lock := flock.New(home.file("fwd.lock"))
			if ok, err := lock.TryLock(); ok {
				return lock.Unlock()
			} else if err != nil {
				return nil // another user's home, of which only the socket is to be seen
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// open reads what the home holds. Anything damaged is an error that names the
// file: nothing is replaced.
func open(home Home, log *slog.Logger, level *slog.LevelVar, finish context.CancelCauseFunc) (*Daemon, error) {
	d := &Daemon{
		home:     home,
		log:      log,
		speeds:   make(chan struct{}, speedSlots),
		room:     newLocalRoom(node.Descriptors()),
		level:    level,
		services: map[string]*service{},
		forwards: map[*forwarding]bool{},
		socks:    map[*socks]bool{},
		seen:     map[peer.ID]sighting{},
		offered:  map[peer.ID]offers{},
		askers:   map[peer.ID]*rate.Limiter{},
		partings: map[peer.ID]chan struct{}{},
		boot:     rand.Text(),
		twins:    newTwins(),
		joins:    newLobby(),
		welcomes: newWelcomes(),
		rosters:  newLobby(),
		readings: newTurnstile(readingsAtOnce, readingsOfOne),
		compared: newComparisons(),
		finish:   finish,
	}
	var err error
	if d.key, _, err = identity.LoadOrCreateKey(home.file("identity.key")); err != nil {
		return nil, err
	}
	if d.self, err = peer.IDFromPrivateKey(d.key); err != nil {
		return nil, fmt.Errorf("derive the peer ID: %w", err)
	}
	if d.book, err = identity.OpenBook(home.file("roster")); err != nil {
		return nil, err
	}
	if d.known, err = identity.OpenKnown(home.file("known")); err != nil {
		return nil, err
	}
	if d.state, err = openState(home.file("daemon")); err != nil {
		return nil, err
	}
	if d.owner, err = identity.OpenOwner(home.State, d.book, d.self); err != nil {
		return nil, err
	}
	return d, nil
}

// levelOf: FWD_LOG=debug|info|warn|error, else fwd.toml's; info tells each
// connection's fate and little else.
func levelOf(c *config) slog.Level {
	var level slog.Level
	if level.UnmarshalText([]byte(os.Getenv("FWD_LOG"))) != nil {
		return c.Log.Level.Level
	}
	return level
}

// now is the time for everything that expires: never before what the roster's
// owner has signed, so a clock set back revives nothing.
func (d *Daemon) now() time.Time { return d.book.Now(time.Now()) }

// wish counts a running command; the daemon ends linger after the last one.
func (d *Daemon) wish() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wishes++
	if d.idle != nil {
		d.idle.Stop()
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.wishes--
		if d.wishes == 0 && d.idle != nil {
			d.idle.Reset(lingerAfterLastWish)
		}
	}
}

// exit serves the far ends' sessions with the services exposed here.
func (d *Daemon) exit() *forward.Exit {
	return &forward.Exit{
		Accept:    d.sessions.Accept,
		Lookup:    d.lookup,
		Room:      d.room.targets,
		OnSession: d.exitSession,
		Log:       d.log,
	}
}

// prepare makes the home's folder, closed to others.
func (h Home) prepare() error {
	if err := os.MkdirAll(h.State, 0o700); h.System && errors.Is(err, fs.ErrExist) {
		return servicesOwn(h.State) // a link to where this user may not look
	} else if err != nil {
		return usage("choose another with FWD_HOME", "make the state folder: %v", err)
	}
	return checkPrivate(h.State)
}

// servicesOwn refuses to run in the machine's home, which its service alone does.
func servicesOwn(dir string) error {
	return usage("while the service runs fwd asks it (sudo systemctl start fwd); what it does stands in "+SystemHome().Config,
		"%s belongs to the machine's service, which does not run", dir)
}
