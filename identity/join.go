package identity

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/chacha20poly1305"
)

// How a machine joins, in the order of the bytes.
//
//  1. The joiner makes a request of its invite:
//     1 (1) ‖ invite ID (8) ‖ nonce (24) ‖ XChaCha20-Poly1305 under the request key of
//     joiner's key (32) ‖ owner's key (32) ‖ wanted name (1+n) ‖ joiner's signature (64)
//  2. Anyone carries it to the owner: the contact itself, or a relay.
//  3. The owner finds the invite by its ID, opens the request, checks that it is meant
//     for itself and signed by the joiner, decides, and has the decision on disk.
//  4. The reply is nonce (24) ‖ XChaCha20-Poly1305 under the reply key of
//     code (1) ‖ name given (1+n) ‖ roster envelope, bound to the very request.
//
// Both keys come by HKDF from the invite's key, which comes by HKDF from its secret.
const (
	// MaxJoinRequest is 512 bytes: fixed fields of 178, a tag, and a name of 63.
	MaxJoinRequest = 512
	// MaxJoinReply is 1 MiB and 1 KiB: a roster and what is around it.
	MaxJoinReply = MaxRoster + 1<<10

	joinVersion   = 1
	joinHead      = 1 + inviteIDSize + chacha20poly1305.NonceSizeX
	signatureSize = 64
)

var (
	// ErrInviteUnknown says that nobody answered for the invite: its network does
	// not know it (any more), or the answer was not for it.
	ErrInviteUnknown = errors.New("nobody knows this invite; ask for a new one")
	// ErrInviteUsed says that an invite let in as many machines as it may, be it that it was cancelled: one code stands for
	// both.
	ErrInviteUsed = errors.New("the invite was cancelled or used up; ask for a new one")
	// ErrInviteExpired says that an invite came too late.
	ErrInviteExpired = errors.New("the invite has expired; ask for a new one")
	// ErrInviteRevoked says that this machine was put off the network after it
	// joined by this invite.
	ErrInviteRevoked = errors.New("this machine was revoked; ask for a new invite")
	// ErrNetworkFull says that the network cannot take the machine.
	ErrNetworkFull = errors.New("the network cannot take another machine")
	// ErrOwnerFailed says that the owner could not write its files.
	ErrOwnerFailed = errors.New("the network's owner failed to store the new machine; its log says why")
)

// joinCode is the first byte of a reply's content.
type joinCode byte

const (
	joinOK joinCode = iota
	joinUsed
	joinExpired
	joinRevoked
	joinFull
	joinFailed
)

func (c joinCode) err() error {
	switch c {
	case joinOK:
		return nil
	case joinUsed:
		return ErrInviteUsed
	case joinExpired:
		return ErrInviteExpired
	case joinRevoked:
		return ErrInviteRevoked
	case joinFull:
		return ErrNetworkFull
	case joinFailed:
		return ErrOwnerFailed
	}
	return fmt.Errorf("the network's owner answered with code %d: %w", c, ErrNewer)
}

// joinCodeOf is the code that tells the holder of an invite of err.
func joinCodeOf(err error) joinCode {
	for c := joinOK; c < joinFailed; c++ {
		if errors.Is(err, c.err()) {
			return c
		}
	}
	return joinFailed
}

// Request makes a join request for the machine that holds key. wantName is the name
// it would like to have; any text will do. finish reads the reply to this request: the
// network's roster, and the name that the machine was given. Its errors are those above.
func (i Invite) Request(key crypto.PrivKey, wantName string) (request []byte, finish func(reply []byte) (*Sealed, string, error), err error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("join request: %w", err)
	}
	if err := checkKey(key); err != nil {
		return nil, nil, fmt.Errorf("join request: %w", err)
	}
	base, err := i.key()
	if err != nil {
		return nil, nil, fmt.Errorf("join request: %w", err)
	}
	head := append([]byte{joinVersion}, i.id[:]...)
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	rand.Read(nonce)
	head = append(head, nonce...)

	j := joinRequest{joiner: self, owner: i.owner, name: CleanName(wantName)}
	if j.signature, err = key.Sign(j.signed(head, i.network)); err != nil {
		return nil, nil, fmt.Errorf("join request: %w", err)
	}
	box, err := joinBox(base, "request")
	if err != nil {
		return nil, nil, fmt.Errorf("join request: %w", err)
	}
	request = box.Seal(bytes.Clone(head), nonce, j.format(), head)
	return request, func(reply []byte) (*Sealed, string, error) { return i.finish(base, request, self, reply) }, nil
}

func (i Invite) finish(base, request []byte, self peer.ID, reply []byte) (*Sealed, string, error) {
	if len(reply) > MaxJoinReply {
		return nil, "", fmt.Errorf("join reply of %d bytes: %w", len(reply), ErrTooLarge)
	}
	a, err := openReply(base, request, reply)
	if err != nil {
		return nil, "", ErrInviteUnknown
	}
	if err := a.code.err(); err != nil {
		return nil, "", err
	}
	s, err := Open(a.envelope, i.Network())
	if err != nil {
		return nil, "", fmt.Errorf("join reply: %w", err)
	}
	e, ok := s.Entry(self)
	if !ok || s.For != "" && s.For != self {
		return nil, "", fmt.Errorf("join reply: the roster is not for this machine: %w", ErrSeal)
	}
	return s, e.Name, nil
}

// joinRequest is what only the owner reads.
type joinRequest struct {
	joiner, owner peer.ID
	name          string
	signature     []byte
}

func (j joinRequest) format() []byte {
	b := appendPublic(appendPublic(nil, j.joiner), j.owner)
	return append(appendField(b, []byte(j.name)), j.signature...)
}

func parseJoinRequest(b []byte) (joinRequest, error) {
	c := cutter{b: b}
	j := joinRequest{joiner: c.public(), owner: c.public(), name: string(c.field()), signature: c.take(signatureSize)}
	if c.failed || len(c.b) > 0 {
		return j, errors.New("join request: malformed")
	}
	return j, nil
}

// signed is what the joiner signs: nothing of it can be moved to another invite,
// network, owner, or moment.
func (j joinRequest) signed(head []byte, network peer.ID) []byte {
	b := append([]byte("fwd/join/1\x00"), head...)
	b = appendPublic(appendPublic(appendPublic(b, network), j.owner), j.joiner)
	return appendField(b, []byte(j.name))
}

// requestID is the invite that a request names, readable by whoever carries it.
func requestID(request []byte) (id [inviteIDSize]byte, err error) {
	switch {
	case len(request) > MaxJoinRequest:
		return id, fmt.Errorf("join request of %d bytes: %w", len(request), ErrTooLarge)
	case len(request) < joinHead:
		return id, errors.New("join request: too short")
	case request[0] != joinVersion:
		return id, fmt.Errorf("join request version %d: %w", request[0], ErrNewer)
	}
	copy(id[:], request[1:])
	return id, nil
}

// openRequest reads a request with the invite's key and checks the joiner's signature.
func openRequest(base []byte, network peer.ID, request []byte) (joinRequest, error) {
	box, err := joinBox(base, "request")
	if err != nil {
		return joinRequest{}, err
	}
	head := request[:joinHead]
	plain, err := box.Open(nil, head[1+inviteIDSize:], request[joinHead:], head)
	if err != nil {
		return joinRequest{}, errors.New("join request: not made with the invite's secret")
	}
	j, err := parseJoinRequest(plain)
	if err != nil {
		return j, err
	}
	_, pub, err := ed25519Public(j.joiner)
	if err != nil {
		return j, err
	}
	if ok, err := pub.Verify(j.signed(head, network), j.signature); err != nil || !ok {
		return j, errors.New("join request: not signed by its joiner")
	}
	return j, nil
}

// joinReply is what only the holder of the code reads.
type joinReply struct {
	code     joinCode
	name     string
	envelope []byte
}

func (a joinReply) format() []byte {
	return append(appendField([]byte{byte(a.code)}, []byte(a.name)), a.envelope...)
}

func parseJoinReply(b []byte) (joinReply, error) {
	c := cutter{b: b}
	a := joinReply{code: joinCode(c.take(1)[0]), name: string(c.field())}
	if c.failed {
		return a, errors.New("join reply: malformed")
	}
	a.envelope = c.b
	return a, nil
}

func sealReply(base, request []byte, a joinReply) ([]byte, error) {
	box, err := joinBox(base, "reply")
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	rand.Read(nonce)
	sum := sha256.Sum256(request)
	return box.Seal(nonce, nonce, a.format(), sum[:]), nil
}

func openReply(base, request, reply []byte) (joinReply, error) {
	box, err := joinBox(base, "reply")
	if err != nil {
		return joinReply{}, err
	}
	if len(reply) < chacha20poly1305.NonceSizeX {
		return joinReply{}, errors.New("join reply: too short")
	}
	nonce, rest := reply[:chacha20poly1305.NonceSizeX], reply[chacha20poly1305.NonceSizeX:]
	sum := sha256.Sum256(request)
	plain, err := box.Open(nil, nonce, rest, sum[:])
	if err != nil {
		return joinReply{}, errors.New("join reply: not made with the invite's secret")
	}
	return parseJoinReply(plain)
}

// joinBox is the cipher of one direction.
func joinBox(base []byte, direction string) (cipher.AEAD, error) {
	key, err := hkdf.Expand(sha256.New, base, "fwd/join/1 "+direction, chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return chacha20poly1305.NewX(key)
}
