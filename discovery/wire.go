package discovery

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-varint"
)

// The client's half of the wire in docs/rendezvous.md. The server's half is in
// relaynode: the two rooms share the page, not the code.

// ProtocolRendezvous is the protocol of register and discover.
const ProtocolRendezvous protocol.ID = "/fwd/rendezvous/1"

const (
	typeRegister   = 1
	typeDiscover   = 2
	typeRegistered = 129
	typeRecords    = 130

	maxAnswer        = 64 << 10 // bytes of an answer
	maxAnswerRecords = 16       // records in an answer
	maxCookie        = 64       // bytes
	maxPipeline      = 32       // requests on one stream
)

// status is a rendezvous point's word on a request.
type status byte

const (
	statusOK        status = 0
	statusBadCookie status = 6
)

// Refusal is the answer of a rendezvous point that did not do what it was asked.
type Refusal struct{ Status byte }

func (r Refusal) Error() string {
	words := [...]string{1: "not allowed", 2: "bad record", 3: "expired or expires too late: compare the clocks",
		4: "quota used up", 5: "full", 6: "bad cookie"}
	if int(r.Status) < len(words) && words[r.Status] != "" {
		return "refused: " + words[r.Status]
	}
	return fmt.Sprintf("refused: status %d", r.Status)
}

func (s status) err() error {
	if s == statusOK {
		return nil
	}
	return Refusal{Status: byte(s)}
}

// discoverRequest asks for the records under a namespace: of one peer, or of
// anyone if Peer is empty, registered after the position of the cookie.
type discoverRequest struct {
	Namespace string
	Peer      peer.ID
	Limit     int
	Cookie    []byte
}

func (q discoverRequest) append(b []byte) []byte {
	b = append(b, typeDiscover)
	b = appendBytes(b, []byte(q.Namespace))
	b = appendBytes(b, []byte(q.Peer))
	b = append(b, varint.ToUvarint(uint64(q.Limit))...)
	return appendBytes(b, q.Cookie)
}

func appendRegister(b, sealed []byte) []byte {
	return append(append(b, typeRegister), sealed...)
}

// registeredAnswer says for how long a registration is kept.
type registeredAnswer struct {
	Status status
	TTL    time.Duration // whole seconds
}

func parseRegistered(b []byte) (registeredAnswer, error) {
	in := parser{rest: b}
	t, s := in.byte(), in.byte()
	seconds := in.uvarint()
	if err := in.end(); err != nil {
		return registeredAnswer{}, err
	}
	if t != typeRegistered || seconds > uint64(MaxTTL/time.Second) || (s != 0 && seconds != 0) {
		return registeredAnswer{}, errMalformed
	}
	return registeredAnswer{Status: status(s), TTL: time.Duration(seconds) * time.Second}, nil
}

func (a registeredAnswer) append(b []byte) []byte {
	b = append(b, typeRegistered, byte(a.Status))
	return append(b, varint.ToUvarint(uint64(a.TTL/time.Second))...)
}

// recordsAnswer carries sealed records, not yet opened.
type recordsAnswer struct {
	Status  status
	Records [][]byte
	Cookie  []byte
}

func parseRecords(b []byte) (recordsAnswer, error) {
	in := parser{rest: b}
	t, s := in.byte(), in.byte()
	count := in.uvarint()
	if in.err != nil || t != typeRecords || count > maxAnswerRecords {
		return recordsAnswer{}, errMalformed
	}
	a := recordsAnswer{Status: status(s)}
	for range count {
		a.Records = append(a.Records, in.bytes(maxRecord))
	}
	a.Cookie = in.bytes(maxCookie)
	if err := in.end(); err != nil {
		return recordsAnswer{}, err
	}
	if s != 0 && (count != 0 || len(a.Cookie) != 0) {
		return recordsAnswer{}, errMalformed
	}
	return a, nil
}

func (a recordsAnswer) append(b []byte) []byte {
	b = append(b, typeRecords, byte(a.Status))
	b = append(b, varint.ToUvarint(uint64(len(a.Records)))...)
	for _, r := range a.Records {
		b = appendBytes(b, r)
	}
	return appendBytes(b, a.Cookie)
}

// appendBytes appends a uvarint length and the bytes.
func appendBytes(b, v []byte) []byte {
	return append(append(b, varint.ToUvarint(uint64(len(v)))...), v...)
}

// readMsg reads one length-prefixed message of at most limit bytes.
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
