package discovery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// pointTimeout bounds one exchange with one rendezvous point, dialling
// included. The relay is one or two round trips away; 5 s is also what libp2p
// gives a dial to a relay.
const pointTimeout = 5 * time.Second

// ErrNoPoint means that there is no rendezvous point to ask.
var ErrNoPoint = errors.New("no rendezvous point known")

// Rendezvous announces and finds peers at rendezvous points, which are relays
// of the network, over /fwd/rendezvous/1. It keeps nothing between two calls.
// Set the optional fields before the first use.
type Rendezvous struct {
	host   host.Host
	points func() []peer.ID

	// Network is the network's ID, to which records are bound; nil: "".
	Network func() string
	// Addrs gives the addresses to announce; nil: the host's.
	Addrs func() []ma.Multiaddr
	// Member says whose records are taken; nil: everyone's.
	Member func(peer.ID) bool
	// Now is the time of day; nil: time.Now.
	Now func() time.Time

	mu     sync.Mutex
	issued time.Time // of our last record
}

var _ discovery.Discovery = (*Rendezvous)(nil)

// NewRendezvous returns a client of the points, asked for at each call. It
// dials a point by the addresses in h's peerstore.
func NewRendezvous(h host.Host, points func() []peer.ID) *Rendezvous {
	return &Rendezvous{host: h, points: points}
}

// Advertise registers this peer under ns at every point and returns for how
// long: the shortest time that any of them granted. It fails only if all do.
func (r *Rendezvous) Advertise(ctx context.Context, ns string, opts ...discovery.Option) (time.Duration, error) {
	var o discovery.Options
	if err := o.Apply(opts...); err != nil {
		return 0, err
	}
	ttl := MaxTTL
	if o.Ttl > 0 {
		ttl = min(o.Ttl, MaxTTL)
	}
	sealed, err := r.seal(ns, ttl)
	if err != nil {
		return 0, fmt.Errorf("announce %s: %w", ns, err)
	}

	points := r.points()
	granted := make([]time.Duration, len(points))
	errs := make([]error, len(points))
	var wg sync.WaitGroup
	for i, p := range points {
		wg.Go(func() { granted[i], errs[i] = r.register(ctx, p, [][]byte{sealed}) })
	}
	wg.Wait()

	var shortest time.Duration
	for i := range points {
		if errs[i] == nil && (shortest == 0 || granted[i] < shortest) {
			shortest = granted[i]
		}
	}
	if shortest > 0 {
		return shortest, nil
	}
	if len(points) == 0 {
		errs = []error{ErrNoPoint}
	}
	return 0, fmt.Errorf("announce %s: %w", ns, errors.Join(errs...))
}

// FindPeers asks every point for the peers under ns and gives each peer as soon
// as a point has named it, at most once with the same addresses. The channel is
// closed when all points have answered or ctx has ended.
func (r *Rendezvous) FindPeers(ctx context.Context, ns string, opts ...discovery.Option) (<-chan peer.AddrInfo, error) {
	var o discovery.Options
	if err := o.Apply(opts...); err != nil {
		return nil, err
	}
	points := r.points()
	if len(points) == 0 {
		return nil, fmt.Errorf("find %s: %w", ns, ErrNoPoint)
	}
	ctx, cancel := context.WithCancel(ctx)
	found := make(chan peer.AddrInfo)
	var wg sync.WaitGroup
	for _, p := range points {
		wg.Go(func() {
			// An error here means one voice less; the other points may know.
			_ = r.discover(ctx, p, ns, "", func(info peer.AddrInfo) bool { return send(ctx, found, info) })
		})
	}
	go func() { // ends with the askers, which end with ctx
		wg.Wait()
		close(found)
	}()

	out := make(chan peer.AddrInfo)
	go func() { // ends with the askers or the limit
		defer close(out)
		defer cancel()
		fresh := newSieve()
		count := 0
		for info := range found {
			if info = fresh.pass(info); len(info.Addrs) == 0 {
				continue
			}
			if !send(ctx, out, info) {
				break
			}
			if count++; o.Limit > 0 && count >= o.Limit {
				break
			}
		}
		cancel()
		for range found { // let the askers go
		}
	}()
	return out, nil
}

// seal makes our record for ns.
func (r *Rendezvous) seal(ns string, ttl time.Duration) ([]byte, error) {
	now := r.now()
	issued := r.nextIssue(now)
	addrs := r.host.Addrs
	if r.Addrs != nil {
		addrs = r.Addrs
	}
	key := r.host.Peerstore().PrivKey(r.host.ID())
	if key == nil {
		return nil, errors.New("the host's peerstore does not hold its key")
	}
	return sealRecord(addressRecord{
		Network: r.network(), Namespace: ns, Issued: issued, Expires: issued.Add(ttl), Addrs: addrs(),
	}, key)
}

// nextIssue makes the issue times of our records grow, so that of two in the
// DHT the newer wins; a clock that was set back by much wins over that, since
// records from the future are refused.
func (r *Rendezvous) nextIssue(now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if next := r.issued.Add(time.Millisecond); now.Before(next) && next.Before(now.Add(clockSkew)) {
		now = next
	}
	r.issued = now
	return now
}

// register hands sealed records to one point, in one round trip, and returns
// the shortest time granted.
func (r *Rendezvous) register(ctx context.Context, point peer.ID, sealed [][]byte) (time.Duration, error) {
	shortest := MaxTTL
	err := r.exchange(ctx, point, func(w *bufio.Writer, in *bufio.Reader, flush func() error) error {
		for _, rec := range sealed[:min(len(sealed), maxPipeline)] {
			if _, err := w.Write(appendBytes(nil, appendRegister(nil, rec))); err != nil {
				return err
			}
		}
		if err := flush(); err != nil {
			return err
		}
		for range sealed[:min(len(sealed), maxPipeline)] {
			b, err := readMsg(in, maxAnswer)
			if err != nil {
				return err
			}
			a, err := parseRegistered(b)
			if err != nil {
				return err
			}
			if err := a.Status.err(); err != nil {
				return err
			}
			shortest = min(shortest, a.TTL)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("register at %s: %w", point, err)
	}
	return shortest, nil
}

// discover asks one point for the records under ns, of one peer if who is not
// empty, and hands on what stands every check until give returns false.
func (r *Rendezvous) discover(ctx context.Context, point peer.ID, ns string, who peer.ID, give func(peer.AddrInfo) bool) error {
	err := r.exchange(ctx, point, func(w *bufio.Writer, in *bufio.Reader, flush func() error) error {
		q := discoverRequest{Namespace: ns, Peer: who, Limit: maxAnswerRecords}
		for range maxPipeline {
			if _, err := w.Write(appendBytes(nil, q.append(nil))); err != nil {
				return err
			}
			if err := flush(); err != nil {
				return err
			}
			b, err := readMsg(in, maxAnswer)
			if err != nil {
				return err
			}
			a, err := parseRecords(b)
			if err != nil {
				return err
			}
			if err := a.Status.err(); err != nil {
				return err
			}
			for _, sealed := range a.Records {
				info, err := r.open(sealed, ns, who)
				if err != nil {
					continue // one bad record says nothing about the next
				}
				if !give(info) {
					return nil
				}
			}
			if len(a.Records) < maxAnswerRecords || who != "" || len(a.Cookie) == 0 {
				return nil
			}
			q.Cookie = a.Cookie
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("discover at %s: %w", point, err)
	}
	return nil
}

// open takes a record only if it is signed by who (if empty, by any member),
// bound to our network and to ns, and has not expired.
func (r *Rendezvous) open(sealed []byte, ns string, who peer.ID) (peer.AddrInfo, error) {
	rec, signer, err := openRecord(sealed)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	if (who != "" && signer != who) || (r.Member != nil && !r.Member(signer)) {
		return peer.AddrInfo{}, errPeer
	}
	if err := rec.check(r.network(), ns, r.now()); err != nil {
		return peer.AddrInfo{}, err
	}
	return peer.AddrInfo{ID: signer, Addrs: boundAddrs(rec.Addrs)}, nil
}

// exchange runs talk on a fresh stream to point, which ends with ctx or after
// pointTimeout. The wire starts with what talk flushes: no round trip is spent
// before it where the protocol is known from identify.
func (r *Rendezvous) exchange(ctx context.Context, point peer.ID, talk func(*bufio.Writer, *bufio.Reader, func() error) error) error {
	ctx, cancel := context.WithTimeout(ctx, pointTimeout)
	defer cancel()
	s, err := r.host.NewStream(network.WithAllowLimitedConn(ctx, "rendezvous"), point, ProtocolRendezvous)
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	w := bufio.NewWriter(s)
	err = talk(w, bufio.NewReader(s), w.Flush)
	if cause := ctx.Err(); err != nil && cause != nil {
		return cause
	}
	if err == nil {
		s.CloseWrite()
	}
	return err
}

func (r *Rendezvous) network() string {
	if r.Network == nil {
		return ""
	}
	return r.Network()
}

func (r *Rendezvous) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

// send gives v to ch unless ctx ends first.
func send[T any](ctx context.Context, ch chan<- T, v T) bool {
	select {
	case ch <- v:
		return true
	case <-ctx.Done():
		return false
	}
}
