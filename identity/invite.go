package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

var (
	// ErrNotInvite says that the text is no invite at all.
	ErrNotInvite = errors.New("this is not an invite (one starts with fwd1)")
	// ErrInviteTypo says that an invite was altered or cut on its way.
	ErrInviteTypo = errors.New("the invite was mistyped or is incomplete; copy the whole code again")
	// ErrInviteNewer says that an invite needs a newer fwd.
	ErrInviteNewer = errors.New("the invite was made by a newer fwd; update this machine")
)

const (
	invitePrefix  = "fwd"
	inviteVersion = '1'

	inviteIDSize  = 8
	secretSize    = 16 // 128 bits: beyond guessing, short enough to carry
	checksumSize  = 4
	maxInviteText = 16 << 10 // 16 KiB: 16 addresses of 255 bytes in base32, and spaces
)

// An Invite is what a person carries to a new machine. It is made by Owner.Invite
// and read by ParseInvite; whoever holds it can join, so only String shows it.
//
// The text is fwd1 and then lower-case base32 (RFC 4648, no padding) of
//
//	network key (32) ‖ owner's key (32) ‖ contact (1: 0 the owner, 1 another, 2 nobody)
//	[contact's key (32)] ‖ invite ID (8) ‖ secret (16)
//	‖ number of addresses (1) ‖ for each: length (1), multiaddr ‖ checksum (4)
//
// where the checksum is the head of SHA-256 over "fwd1" and all before it. With contact 2 the
// addresses are the new machine's own: it waits there for the owner, which nobody can dial.
type Invite struct {
	network peer.ID
	owner   peer.ID
	contact peer.ID // "": the joiner waits
	addrs   []ma.Multiaddr
	id      [inviteIDSize]byte
	secret  [secretSize]byte
}

// Network is the network that the invite leads to.
func (i Invite) Network() NetworkID { return NetworkID(i.network.String()) }

// Owner is the peer that answers the join request.
func (i Invite) Owner() peer.ID { return i.owner }

// Contact is whom to dial: the owner, or a relay that carries the request to it. It means nothing
// where the joiner Waits.
func (i Invite) Contact() peer.AddrInfo { return peer.AddrInfo{ID: i.contact, Addrs: i.addrs} }

// Waits tells whether the joiner dials nobody, but waits at addrs until the owner does.
func (i Invite) Waits() (addrs []ma.Multiaddr, waits bool) {
	return i.addrs, i.contact == "" && i.network != ""
}

// DoorKey is the key that a waiting joiner shows to the owner, which knows its public half and not the
// joiner's own. It is good for nothing else.
func (i Invite) DoorKey() (crypto.PrivKey, error) {
	public, _, err := ed25519Public(i.network)
	if err != nil {
		return nil, err
	}
	seed, err := hkdf.Key(sha256.New, i.secret[:], append(public, i.id[:]...), "fwd/invite/1 door", ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed))
}

func (i Invite) door() (peer.ID, error) {
	key, err := i.DoorKey()
	if err != nil {
		return "", err
	}
	return peer.IDFromPrivateKey(key)
}

// ID names the invite in listings and logs. It lets nobody in.
func (i Invite) ID() string { return hex.EncodeToString(i.id[:]) }

// LogValue keeps the secret out of logs.
func (i Invite) LogValue() slog.Value { return slog.StringValue("invite " + i.ID()) }

// GoString keeps the secret out of %#v.
func (i Invite) GoString() string { return "identity.Invite(" + i.ID() + ")" }

// String is the code itself.
func (i Invite) String() string {
	if i.network == "" {
		return ""
	}
	b := appendPublic(appendPublic(nil, i.network), i.owner)
	switch i.contact {
	case i.owner:
		b = append(b, 0)
	case "":
		b = append(b, 2)
	default:
		b = appendPublic(append(b, 1), i.contact)
	}
	b = append(append(b, i.id[:]...), i.secret[:]...)
	b = append(b, byte(len(i.addrs)))
	for _, a := range i.addrs {
		b = append(append(b, byte(len(a.Bytes()))), a.Bytes()...)
	}
	b = append(b, checksum(inviteVersion, b)...)
	return invitePrefix + string(inviteVersion) + inviteBase32.EncodeToString(b)
}

var inviteBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ParseInvite reads a code as people paste it: spaces, line breaks, quotes and
// capitals do not matter. The errors are ErrNotInvite, ErrInviteTypo and
// ErrInviteNewer.
func ParseInvite(s string) (Invite, error) {
	if len(s) > maxInviteText {
		return Invite{}, ErrNotInvite
	}
	code := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || strings.ContainsRune("\"'`", r) {
			return -1
		}
		return unicode.ToLower(r)
	}, s)
	code, ok := strings.CutPrefix(code, invitePrefix)
	if !ok || len(code) < 2 || code[0] < '1' || code[0] > '9' {
		return Invite{}, ErrNotInvite
	}
	version, code := code[0], code[1:]
	b, err := inviteBase32.DecodeString(code)
	if err != nil || inviteBase32.EncodeToString(b) != code || len(b) < checksumSize {
		return Invite{}, ErrInviteTypo
	}
	b, sum := b[:len(b)-checksumSize], b[len(b)-checksumSize:]
	switch {
	case !bytes.Equal(sum, checksum(version, b)):
		return Invite{}, ErrInviteTypo
	case version != inviteVersion:
		return Invite{}, ErrInviteNewer
	}
	i, err := parseInviteBody(b)
	if err != nil {
		return Invite{}, fmt.Errorf("%w: %w", ErrNotInvite, err)
	}
	return i, nil
}

func parseInviteBody(b []byte) (i Invite, err error) {
	c := cutter{b: b}
	i.network, i.owner = c.public(), c.public()
	switch kind := c.take(1); {
	case c.failed || kind[0] > 2:
		return i, errors.New("malformed")
	case kind[0] == 0:
		i.contact = i.owner
	case kind[0] == 2:
	default:
		if i.contact = c.public(); i.contact == i.owner {
			return i, errors.New("malformed")
		}
	}
	copy(i.id[:], c.take(inviteIDSize))
	copy(i.secret[:], c.take(secretSize))
	n := c.take(1)
	if c.failed || n[0] > MaxAddrs {
		return i, errors.New("malformed")
	}
	for range n[0] {
		a, err := ma.NewMultiaddrBytes(c.field())
		if c.failed || err != nil {
			return i, errors.New("malformed address")
		}
		i.addrs = append(i.addrs, a)
	}
	if c.failed || len(c.b) > 0 {
		return i, errors.New("malformed")
	}
	return i, nil
}

func checksum(version byte, b []byte) []byte {
	sum := sha256.Sum256(append([]byte{'f', 'w', 'd', version}, b...))
	return sum[:checksumSize]
}

// newInvite draws the ID and the secret.
func newInvite(network, owner, contact peer.ID, addrs []ma.Multiaddr) Invite {
	i := Invite{network: network, owner: owner, contact: contact, addrs: addrs}
	rand.Read(i.id[:]) // never fails, see its documentation
	rand.Read(i.secret[:])
	return i
}

// key derives what the owner keeps of the secret. It opens requests and seals
// replies, and the code cannot be made of it.
func (i Invite) key() ([]byte, error) {
	public, _, err := ed25519Public(i.network)
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, i.secret[:], append(public, i.id[:]...), "fwd/invite/1", 32)
}

// cutter takes fields off the front of bytes from outside. After the first that is
// missing it has failed, and gives zeroes.
type cutter struct {
	b      []byte
	failed bool
}

func (c *cutter) take(n int) []byte {
	if c.failed || len(c.b) < n {
		c.failed = true
		return make([]byte, n)
	}
	var field []byte
	field, c.b = c.b[:n:n], c.b[n:]
	return field
}

// field takes one length byte and as many bytes.
func (c *cutter) field() []byte { return c.take(int(c.take(1)[0])) }

// public takes the 32 bytes of a key and makes them the peer they belong to.
func (c *cutter) public() peer.ID {
	p, err := peerFromPublic(c.take(32))
	if err != nil {
		c.failed = true
	}
	return p
}

func appendField(b, field []byte) []byte { return append(append(b, byte(len(field))), field...) }

// appendPublic appends the key inside an Ed25519 peer ID; all peers here are.
func appendPublic(b []byte, p peer.ID) []byte {
	public, _, err := ed25519Public(p)
	if err != nil {
		panic("identity: " + err.Error()) // checked where the peer came in
	}
	return append(b, public...)
}
