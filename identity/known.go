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

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	maxKnown      = 4 << 20 // 4 MiB, bounds the file
	maxKnownPeers = 4096    // peers with addresses: as many as a network has
	maxKnownAddrs = 16      // of one peer
	maxPins       = 65536

	handoverDomain = "fwd/handover/1"
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
//	addr 12D3KooW… /ip4/192.0.2.7/udp/4001/quic-v1 /ip4/…
type Known struct {
	path  string
	write func(path string, data []byte, mode os.FileMode) error

	mu    sync.Mutex
	facts facts
}

// facts are replaced, never altered.
type facts struct {
	pins  map[string]peer.ID
	addrs map[peer.ID][]ma.Multiaddr
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

// Pin binds name to p at first use. Later it is nil if the name still means p, and
// an *IdentityChangedError if not. The name is as the user says it, "nas" and
// "nas.nas-box" being two.
func (k *Known) Pin(name string, p peer.ID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	was, ok := k.facts.pins[name]
	switch {
	case ok && was == p:
		return nil
	case ok:
		return &IdentityChangedError{Name: name, Was: was, Now: p}
	}
	return k.setPinsLocked(map[string]peer.ID{name: p})
}

// Pinned is the peer that name meant at first use.
func (k *Known) Pinned(name string) (peer.ID, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, ok := k.facts.pins[name]
	return p, ok
}

// Trust binds name to p, whatever it meant before.
func (k *Known) Trust(name string, p peer.ID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.setPinsLocked(map[string]peer.ID{name: p})
}

func (k *Known) setPinsLocked(pins map[string]peer.ID) error {
	next := facts{pins: maps.Clone(k.facts.pins), addrs: k.facts.addrs}
	for name, p := range pins {
		if err := checkPin(name, p); err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		next.pins[name] = p
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
	return k.storeLocked(facts{pins: map[string]peer.ID{}, addrs: map[peer.ID][]ma.Multiaddr{}})
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
		fmt.Fprintf(&b, "pin %s %s\n", name, f.pins[name])
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
	f := facts{pins: map[string]peer.ID{}, addrs: map[peer.ID][]ma.Multiaddr{}}
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
	case words[0] == "pin" && len(words) == 3:
		p, err := parsePeer(words[2])
		if err != nil {
			return err
		}
		if _, twice := f.pins[words[1]]; twice {
			return fmt.Errorf("%s is pinned twice", words[1])
		}
		f.pins[words[1]] = p
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

// HandOver is the word of a key's holder that another peer takes its place; pins
// follow it (Known.HandOver). Nobody else can say so, the network's owner included.
func HandOver(old crypto.PrivKey, to peer.ID) ([]byte, error) {
	if _, _, err := ed25519Public(to); err != nil {
		return nil, fmt.Errorf("hand over: %w", err)
	}
	return sealBytes(handoverDomain, []byte(to.String()), old)
}

// HandOver moves each pin of the peer that signed the hand-over to the one it names.
func (k *Known) HandOver(envelope []byte) error {
	payload, signer, err := openBytes(handoverDomain, envelope, maxHeartbeat, "")
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	to, err := parsePeer(string(payload))
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	moved := map[string]peer.ID{}
	for name, p := range k.facts.pins {
		if p.String() == string(signer) {
			moved[name] = to
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return k.setPinsLocked(moved)
}
