package relaynode

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-varint"
)

// The server's half of the wire in docs/rendezvous.md. The client's half is in
// discovery: the two rooms share the page, not the code.

// ProtocolRendezvous is the protocol of register and discover.
const ProtocolRendezvous protocol.ID = "/fwd/rendezvous/1"

const (
	typeRegister   = 1
	typeDiscover   = 2
	typeRegistered = 129
	typeRecords    = 130

	maxRequest   = 4096 // bytes
	maxRecord    = 2048 // bytes of a sealed record
	maxNamespace = 128  // bytes
	maxNetwork   = 128  // bytes
	maxPeerID    = 64   // bytes; ours have 38
	maxAddr      = 256  // bytes of one binary multiaddr
	maxAddrs     = 32   // in a record
	maxAnswer    = 16   // records in an answer
	maxCookie    = 64   // bytes that are read as a cookie

	maxTTL    = 2 * time.Hour    // longest life of a record
	clockSkew = 10 * time.Minute // by how much two peers' clocks may differ
)

// status is the point's word on a request.
type status byte

const (
	statusOK         status = 0
	statusNotAllowed status = 1
	statusBadRecord  status = 2
	statusExpired    status = 3
	statusQuota      status = 4
	statusFull       status = 5
	statusBadCookie  status = 6
)

var errMalformed = errors.New("malformed")

// request is what a client asks: to register Record if it is not nil, else to
// discover.
type request struct {
	Record []byte

	Namespace string
	Peer      peer.ID // "": of anyone
	Limit     uint64  // 0: as many as fit
	Cookie    []byte
}

func parseRequest(b []byte) (request, error) {
	in := parser{rest: b}
	switch in.byte() {
	case typeRegister:
		if len(in.rest) == 0 || len(in.rest) > maxRecord {
			return request{}, errMalformed
		}
		return request{Record: in.rest}, nil
	case typeDiscover:
		q := request{
			Namespace: string(in.bytes(maxNamespace)),
			Peer:      peer.ID(in.bytes(maxPeerID)),
			Limit:     in.uvarint(),
			Cookie:    in.bytes(maxCookie),
		}
		if err := in.end(); err != nil || q.Namespace == "" {
			return request{}, errMalformed
		}
		return q, nil
	}
	return request{}, errMalformed
}

func (q request) append(b []byte) []byte {
	if q.Record != nil {
		return append(append(b, typeRegister), q.Record...)
	}
	b = append(b, typeDiscover)
	b = appendBytes(b, []byte(q.Namespace))
	b = appendBytes(b, []byte(q.Peer))
	b = append(b, varint.ToUvarint(q.Limit)...)
	return appendBytes(b, q.Cookie)
}

func registeredAnswer(s status, ttl time.Duration) []byte {
	return append([]byte{typeRegistered, byte(s)}, varint.ToUvarint(uint64(ttl/time.Second))...)
}

func recordsAnswer(s status, records [][]byte, cookie []byte) []byte {
	b := append([]byte{typeRecords, byte(s)}, varint.ToUvarint(uint64(len(records)))...)
	for _, r := range records {
		b = appendBytes(b, r)
	}
	return appendBytes(b, cookie)
}

const recordType = "/fwd/address-record/1"

// addressRecord is the payload of a sealed record. It implements record.Record.
type addressRecord struct {
	Network, Namespace string
	Issued, Expires    uint64 // Unix ms
	Addrs              [][]byte
}

func (*addressRecord) Domain() string { return "fwd-address-record" }
func (*addressRecord) Codec() []byte  { return []byte(recordType) }

func (r *addressRecord) MarshalRecord() ([]byte, error) {
	b := varint.ToUvarint(1)
	b = appendBytes(b, []byte(r.Network))
	b = appendBytes(b, []byte(r.Namespace))
	b = append(b, varint.ToUvarint(r.Issued)...)
	b = append(b, varint.ToUvarint(r.Expires)...)
	b = append(b, varint.ToUvarint(uint64(len(r.Addrs)))...)
	for _, a := range r.Addrs {
		b = appendBytes(b, a)
	}
	return b, nil
}

func (r *addressRecord) UnmarshalRecord(b []byte) error {
	in := parser{rest: b}
	version := in.uvarint()
	r.Network = string(in.bytes(maxNetwork))
	r.Namespace = string(in.bytes(maxNamespace))
	r.Issued, r.Expires = in.uvarint(), in.uvarint()
	count := in.uvarint()
	if in.err != nil || version != 1 || r.Namespace == "" || r.Issued >= r.Expires || count > maxAddrs {
		return errMalformed
	}
	for range count {
		a := in.bytes(maxAddr)
		parsed, err := ma.NewMultiaddrBytes(a)
		if err != nil || string(parsed.Bytes()) != string(a) {
			return errMalformed
		}
		r.Addrs = append(r.Addrs, a)
	}
	return in.end()
}

func (r *addressRecord) expires() time.Time { return time.UnixMilli(int64(r.Expires)) }

// openRecord checks form and signature of a sealed record and says who signed it.
func openRecord(sealed []byte) (*addressRecord, peer.ID, error) {
	r := new(addressRecord)
	env, err := record.ConsumeTypedEnvelope(sealed, r)
	if err != nil {
		return nil, "", err
	}
	if string(env.PayloadType) != recordType {
		return nil, "", errMalformed
	}
	p, err := peer.IDFromPublicKey(env.PublicKey)
	return r, p, err
}

// appendBytes appends a uvarint length and the bytes.
func appendBytes(b, v []byte) []byte {
	return append(append(b, varint.ToUvarint(uint64(len(v)))...), v...)
}

// readMsg reads one length-prefixed message of at most limit bytes; io.EOF
// stands for a clean end between two messages only.
func readMsg(r *bufio.Reader, limit int) ([]byte, error) {
	n, err := varint.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > uint64(limit) {
		return nil, fmt.Errorf("message of %d bytes, more than %d: %w", n, limit, errMalformed)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// parser takes fields off the front of a message and remembers the first
// error, so that callers may look once, at the end.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) fail() { p.err, p.rest = errMalformed, nil }

func (p *parser) byte() byte {
	if len(p.rest) == 0 {
		p.fail()
		return 0
	}
	b := p.rest[0]
	p.rest = p.rest[1:]
	return b
}

func (p *parser) uvarint() uint64 {
	v, n, err := varint.FromUvarint(p.rest)
	if err != nil {
		p.fail()
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *parser) bytes(limit int) []byte {
	n := p.uvarint()
	if p.err != nil || n > uint64(limit) || n > uint64(len(p.rest)) {
		p.fail()
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

// end reports the first error, or that bytes were left over.
func (p *parser) end() error {
	if p.err == nil && len(p.rest) > 0 {
		p.fail()
	}
	return p.err
}
