package identity

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	maxKnown      = 4 << 20 // 4 MiB, bounds the file
	maxKnownPeers = 4096    // peers with addresses: as many as a network has
	maxKnownAddrs = 16      // of one peer
	maxPins       = 65536
)

// An IdentityChangedError says that a name now means another machine than when it was
// first used. Nobody should go on without a person's word (Known.Trust).
type IdentityChangedError struct {
	Name     string
	Was, Now peer.ID
}

func (e *IdentityChangedError) Error() string {
	return fmt.Sprintf("%s was peer %s when first used and is now %s; if that is right: fwd trust %s", e.Name, e.Was, e.Now, e.Name)
}

// Known is what this machine remembers of others: which peer a name meant at first
// use (pins), and at which addresses a peer was last reached. Its file has one
// item a line:
//
//	pin nas 12D3KooW…
//	pin web 12D3KooW… 1.12    hand-overs said up to roster 1.12 no longer move it
//	addr 12D3KooW… /ip4/192.0.2.7/udp/4001/quic-v1 /ip4/…
type Known struct {
	path  string
	write func(path string, data []byte, mode os.FileMode) error

	mu    sync.Mutex
	facts facts
}

// facts are replaced, never altered.
type facts struct {
	pins  map[string]pin
	addrs map[peer.ID][]ma.Multiaddr
}

// A pin is whom a name means, and since which roster: later hand-overs alone move it.
type pin struct {
	peer  peer.ID
	since edition
}

// OpenKnown reads the file at path. No file means that nothing is known; a damaged
// one is named in the error and kept.
func OpenKnown(path string) (*Known, error) {
	k := &Known{path: path, write: WriteFile}
	data, err := readPrivate(path, maxKnown)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if k.facts, err = parseKnown(data); err != nil {
		return nil, &DamagedError{path, err}
	}
	return k, nil
}

// Pin binds name to p, whom it means by the roster r, at first use. Later it is nil if
// the name still means p, or if the peer it was pinned to has handed over to p; then p
// is pinned. If neither it is an *IdentityChangedError. The name is as the user says it,
// "nas" and "nas.nas-box" being two.
func (k *Known) Pin(name string, p peer.ID, r *Roster) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	was, ok := k.facts.pins[name]
	if ok && was.peer == p {
		return nil
	}
	now := pin{p, r.HandOvers.naming(p)}
	if ok {
		if now, ok = was.follow(p, r); !ok {
			return &IdentityChangedError{Name: name, Was: was.peer, Now: p}
		}
	}
	return k.setPinsLocked(map[string]pin{name: now})
}

// follow is the pin on p, if the hand-overs on the roster lead there.
func (n pin) follow(p peer.ID, r *Roster) (pin, bool) {
	at, ok := r.HandOvers.lead(n.peer, n.since, p)
	return pin{p, at}, ok
}

// Follow moves each pin whose name means another peer by the roster r to that peer, if
// the hand-overs lead there. Done with each new roster, it needs no roster to carry a
// word for ever.
func (k *Known) Follow(r *Roster) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	moved := map[string]pin{}
	for name, was := range k.facts.pins {
		if !r.HandOvers.by(was.peer) {
			continue
		}
		if _, p, err := r.Resolve(name); err == nil && p != was.peer {
			if now, ok := was.follow(p, r); ok {
				moved[name] = now
			}
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return k.setPinsLocked(moved)
}

// Pinned is the peer that name meant at first use.
func (k *Known) Pinned(name string) (peer.ID, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, ok := k.facts.pins[name]
	return p.peer, ok
}

// Trust binds name to p, whatever it meant before. No hand-over of the roster r or before
// moves it: a person's word is later than theirs. (What r carries was said before r.)
func (k *Known) Trust(name string, p peer.ID, r *Roster) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.setPinsLocked(map[string]pin{name: {p, edition{r.Term, r.Epoch - 1}}})
}

func (k *Known) setPinsLocked(pins map[string]pin) error {
	next := facts{pins: maps.Clone(k.facts.pins), addrs: k.facts.addrs}
	for name, n := range pins {
		if err := checkPin(name, n.peer); err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		next.pins[name] = n
	}
	if len(next.pins) > maxPins {
		return fmt.Errorf("pin: %d names: %w", len(next.pins), ErrTooLarge)
	}
	return k.storeLocked(next)
}

// checkPin accepts what can be pinned: one name, or service and machine.
func checkPin(name string, p peer.ID) error {
	service, machine, dotted := strings.Cut(name, ".")
	if err := CheckName(service); err != nil {
		return err
	}
	if dotted {
		if err := CheckName(machine); err != nil {
			return err
		}
	}
	_, _, err := ed25519Public(p)
	return err
}

// Addrs are the addresses at which p was last reached.
func (k *Known) Addrs(p peer.ID) []ma.Multiaddr {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.facts.addrs[p])
}

// SetAddrs remembers at most 16 addresses of p, best first; none forgets p. What is
// known already is not written again.
func (k *Known) SetAddrs(p peer.ID, addrs []ma.Multiaddr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, _, err := ed25519Public(p); err != nil {
		return fmt.Errorf("known addresses: %w", err)
	}
	kept := slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return !writable(a) })
	kept = kept[:min(len(kept), maxKnownAddrs)]
	if slices.EqualFunc(kept, k.facts.addrs[p], func(a, b ma.Multiaddr) bool { return a.Equal(b) }) {
		return nil
	}
	next := facts{pins: k.facts.pins, addrs: maps.Clone(k.facts.addrs)}
	if delete(next.addrs, p); len(kept) > 0 {
		for q := range next.addrs { // any one: it is found again by other means
			if len(next.addrs) < maxKnownPeers {
				break
			}
			delete(next.addrs, q)
		}
		next.addrs[p] = kept
	}
	return k.storeLocked(next)
}

// writable tells whether an address reads back from a line of the file as itself.
func writable(a ma.Multiaddr) bool {
	text := a.String()
	again, err := parseAddr(text)
	return err == nil && again.Equal(a) && len(strings.Fields(text)) == 1
}

// Forget drops everything, for a machine that leaves its network.
func (k *Known) Forget() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.storeLocked(facts{pins: map[string]pin{}, addrs: map[peer.ID][]ma.Multiaddr{}})
}

func (k *Known) storeLocked(next facts) error {
	if err := k.write(k.path, next.format(), 0o600); err != nil {
		return fmt.Errorf("known: %w", err)
	}
	k.facts = next
	return nil
}

func (f facts) format() []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(f.pins)) {
		fmt.Fprintf(&b, "pin %s %s", name, f.pins[name].peer)
		if since := f.pins[name].since; since != (edition{}) {
			fmt.Fprintf(&b, " %s", since)
		}
		b.WriteByte('\n')
	}
	for _, p := range slices.Sorted(maps.Keys(f.addrs)) {
		fmt.Fprintf(&b, "addr %s", p)
		for _, a := range f.addrs[p] {
			fmt.Fprintf(&b, " %s", a)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func parseKnown(data []byte) (facts, error) {
	f := facts{pins: map[string]pin{}, addrs: map[peer.ID][]ma.Multiaddr{}}
	lines := bufio.NewScanner(bytes.NewReader(data))
	n := 0
	for lines.Scan() {
		n++
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := f.add(words); err != nil {
			return f, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return f, fmt.Errorf("line %d: %w", n+1, err)
	}
	return f, nil
}

func (f facts) add(words []string) error {
	switch {
	case words[0] == "pin" && (len(words) == 3 || len(words) == 4):
		p, err := parsePeer(words[2])
		if err != nil {
			return err
		}
		if _, twice := f.pins[words[1]]; twice {
			return fmt.Errorf("%s is pinned twice", words[1])
		}
		n := pin{peer: p}
		if len(words) == 4 {
			if n.since, err = parseEdition(words[3]); err != nil {
				return err
			}
		}
		f.pins[words[1]] = n
		return checkPin(words[1], p)
	case words[0] == "addr" && len(words) >= 3 && len(words) <= 2+maxKnownAddrs:
		p, err := parsePeer(words[1])
		if err != nil {
			return err
		}
		if _, twice := f.addrs[p]; twice {
			return fmt.Errorf("the addresses of %s are given twice", p)
		}
		for _, w := range words[2:] {
			a, err := parseAddr(w)
			if err != nil {
				return err
			}
			f.addrs[p] = append(f.addrs[p], a)
		}
		return nil
	}
	return fmt.Errorf("neither a pin nor addresses: %.40q", strings.Join(words, " "))
}
