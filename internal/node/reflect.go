package node

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// What relays say of how they see us; the wire is in docs/rendezvous.md.

// reflectProtocol is served by relays.
const reflectProtocol protocol.ID = "/fwd/reflect/1"

const (
	// observeWithin is how long a relay may take to answer.
	observeWithin = 2 * time.Second
	// maxMultiaddr is the most bytes that are taken for an address, maxReflected for the other parts.
	maxMultiaddr, maxReflected = 512, 256

	kindReflect, kindReflected = 0x11, 0x12
	reflectSize, reflectedSize = 80, 35
	tokenSize                  = 16
	proofDomain                = "fwd reflect 1\n"
	// proofLife is how old a proof may be, and how wrong a clock.
	proofLife = 24 * time.Hour
)

// What a UDP request may ask for besides its answer.
const (
	answerOnly  = 0
	answerOther = 1 // once more, from the relay's other port
	answerPort  = 2 // once more, to another port of ours
)

// reflected is a relay's answer about one connection.
type reflected struct {
	addr  ma.Multiaddr
	proof punch.Proof // the zero Proof from an older relay
	port  uint16      // where it reflects by UDP; 0: it does not
	token [tokenSize]byte
	other uint16 // one more port that reflects; 0: none
	tcp   uint16 // where it reflects by TCP; 0: it does not
}

// observe asks the relay at the other end of c how it sees this very connection.
func observe(ctx context.Context, c network.Conn) (reflected, error) {
	ctx, cancel := context.WithTimeout(ctx, observeWithin)
	defer cancel()
	s, err := openOn(ctx, c, reflectProtocol)
	if err != nil {
		return reflected{}, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	// Sends the protocol's name. An error means that the answer came first, and the relay's end of the
	// stream with it.
	s.CloseWrite()
	r, err := readReflected(s)
	r.proof.Relay = c.RemotePeer()
	return r, err
}

func readReflected(r io.Reader) (out reflected, err error) {
	in := bufio.NewReader(io.LimitReader(r, maxMultiaddr+4*maxReflected+5*binary.MaxVarintLen64))
	addr, err := readBytes(in, maxMultiaddr)
	if err != nil {
		return out, err
	}
	if out.addr, err = ma.NewMultiaddrBytes(addr); err != nil {
		return reflected{}, err
	}
	if !isIP(out.addr) {
		return reflected{}, errors.New("not an IP address")
	}
	proof, err := readBytes(in, maxReflected)
	if errors.Is(err, io.EOF) {
		return out, nil // an older relay
	}
	if err != nil {
		return reflected{}, err
	}
	if len(proof) > 8 {
		out.proof = punch.Proof{Addr: out.addr, At: time.Unix(int64(binary.BigEndian.Uint64(proof)), 0), Signature: proof[8:]}
	}
	permission, err := readBytes(in, maxReflected)
	if err != nil && !errors.Is(err, io.EOF) {
		return reflected{}, err
	}
	if len(permission) == 2+tokenSize {
		out.port, out.token = binary.BigEndian.Uint16(permission), [tokenSize]byte(permission[2:])
	}
	for _, port := range []*uint16{&out.other, &out.tcp} {
		if b, err := readBytes(in, maxReflected); err == nil && len(b) == 2 {
			*port = binary.BigEndian.Uint16(b)
		}
	}
	return out, nil
}

// readBytes reads one length-prefixed byte string.
func readBytes(in *bufio.Reader, limit uint64) ([]byte, error) {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%d bytes; at most %d are taken", size, limit)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// vouched says whether a relay of the roster saw p at the UDP address that p's report begins with. Only
// such an address gets packets at many ports, or a peer could have us scan a stranger.
func (n *Node) vouched(p peer.ID, r punch.Report) bool {
	to, ok := r.Seen4()
	if !ok || !slices.ContainsFunc(n.cfg.Relays(), func(i peer.AddrInfo) bool { return i.ID == r.Proof.Relay }) {
		return false
	}
	at, err := netip.ParseAddr(hostOf(r.Proof.Addr))
	return err == nil && at == to.Addr() && proves(r.Proof, p, time.Now())
}

// proves checks a relay's signature.
func proves(f punch.Proof, p peer.ID, now time.Time) bool {
	key, err := f.Relay.ExtractPublicKey()
	if err != nil || now.Sub(f.At).Abs() > proofLife || len(f.Addr) == 0 {
		return false
	}
	text := appendBytes(appendBytes([]byte(proofDomain), []byte(p)), f.Addr.Bytes())
	ok, err := key.Verify(binary.BigEndian.AppendUint64(text, uint64(f.At.Unix())), f.Signature)
	return ok && err == nil
}

func appendBytes(b, v []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(v))), v...) }

// question is one UDP request; answers carry its nonce.
type question struct {
	nonce packetKey
	data  []byte
}

func newQuestion(token [tokenSize]byte, extra byte, port uint16) question {
	var q question
	rand.Read(q.nonce[:])
	q.data = append(append([]byte{kindReflect}, q.nonce[:]...), token[:]...)
	q.data = binary.BigEndian.AppendUint16(append(q.data, extra), port)
	q.data = append(q.data, make([]byte, reflectSize-len(q.data))...)
	return q
}

// read reads an answer: where the relay saw the request come from.
func (q question) read(b []byte) (netip.AddrPort, bool) {
	if len(b) != reflectedSize || b[0] != kindReflected || packetKey(b[1:1+keySize]) != q.nonce {
		return netip.AddrPort{}, false
	}
	var seen [18]byte
	for i := range seen {
		seen[i] = b[1+keySize+i] ^ q.nonce[i%keySize]
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(seen[:16])).Unmap(), binary.BigEndian.Uint16(seen[16:])), true
}
