package relaynode

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	messageTimeout    = 10 * time.Second // for a request to arrive, and for an answer to be taken
	requestsPerStream = 32
)

// point is the rendezvous point: it keeps members' records and answers members.
type point struct {
	network func() string // see Config
	admit   func(peer.ID) bool
	now     func() time.Time
	store   *store
	cookies *cookies
	gate    *gate
}

func newPoint(network func() string, admit func(peer.ID) bool, gate *gate, now func() time.Time) (*point, error) {
	c, err := newCookies()
	if err != nil {
		return nil, fmt.Errorf("make the key of the rendezvous cookies: %w", err)
	}
	return &point{network: network, admit: admit, now: now, store: newStore(), cookies: c, gate: gate}, nil
}

// handle answers the requests on one stream.
func (p *point) handle(s network.Stream) {
	if err := p.talk(s, s.Conn().RemotePeer()); err != nil {
		s.Reset()
		return
	}
	s.Close()
}

func (p *point) talk(s network.Stream, from peer.ID) error {
	in := bufio.NewReaderSize(s, maxRequest)
	for range requestsPerStream {
		s.SetReadDeadline(time.Now().Add(messageTimeout))
		b, err := readMsg(in, maxRequest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		q, err := parseRequest(b)
		if err != nil {
			return err
		}
		if !p.admit(from) { // each time: the roster may change while we talk
			return errors.New("not a member")
		}
		s.SetWriteDeadline(time.Now().Add(messageTimeout))
		if _, err := s.Write(appendBytes(nil, p.answer(from, q))); err != nil {
			return err
		}
	}
	return nil
}

// answer does what a member asks.
func (p *point) answer(from peer.ID, q request) []byte {
	slow := !p.gate.allow(from)
	if q.Record != nil {
		if slow {
			return registeredAnswer(statusQuota, 0)
		}
		return registeredAnswer(p.register(from, q.Record))
	}
	if slow {
		return recordsAnswer(statusQuota, nil, nil)
	}
	return recordsAnswer(p.discover(from, q))
}

// register takes a peer's own record for as long as it is valid.
func (p *point) register(from peer.ID, sealed []byte) (status, time.Duration) {
	rec, signer, err := openRecord(sealed)
	if err != nil {
		return statusBadRecord, 0
	}
	if network := p.network(); network != "" && rec.Network != network {
		return statusBadRecord, 0
	}
	if signer != from {
		return statusNotAllowed, 0
	}
	now := p.now()
	ttl := rec.expires().Sub(now)
	if ttl <= 0 || ttl > maxTTL+clockSkew {
		return statusExpired, 0
	}
	if s := p.store.put(from, rec.Namespace, sealed, rec.expires(), now); s != statusOK {
		return s, 0
	}
	return statusOK, min(ttl, maxTTL)
}

// discover returns records and the cookie for the next question.
func (p *point) discover(from peer.ID, q request) (status, [][]byte, []byte) {
	after, ok := p.cookies.read(q.Cookie, from, q.Namespace)
	if !ok {
		return statusBadCookie, nil, nil
	}
	limit := maxAnswer
	if q.Limit > 0 && q.Limit < maxAnswer {
		limit = int(q.Limit)
	}
	var records [][]byte
	for _, e := range p.store.get(q.Namespace, q.Peer, after, limit, p.now()) {
		records = append(records, e.sealed)
		after = e.position
	}
	return statusOK, records, p.cookies.make(from, q.Namespace, after)
}
