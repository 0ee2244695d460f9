package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// dhtPrefix makes the protocol /fwd/kad/1.0.0: a DHT of our own that shares
	// nothing with the public one.
	dhtPrefix = "/fwd"
	// dhtSpace is the first part of a record's key, "/fwd/<namespace>".
	dhtSpace = "fwd"
	// dhtSweep is how often a server drops records past MaxTTL.
	dhtSweep = 10 * time.Minute
	// dhtTimeout bounds one lookup or one store. Some 150 ms where everyone
	// answers (measured); the rest is for servers that are gone.
	dhtTimeout = 10 * time.Second
)

// errNoServer means that the DHT knows no server yet.
var errNoServer = errors.New("no DHT server known")

// NewDHT returns the network's own Kademlia DHT on h, running until it is
// closed. Only members get into its routing table and its queries. With server
// it stores and answers for others: relays do. A store takes a record only if
// it is a member's own, under one of the discovery keys (keys, current first),
// so that a member can neither take another's place nor fill the memory: at
// most one record per member and key.
func NewDHT(h host.Host, server bool, member func(peer.ID) bool, bootstrap func() []peer.AddrInfo, keys func() [][]byte) (*dht.IpfsDHT, error) {
	mode := dht.ModeClient
	if server {
		mode = dht.ModeServer
	}
	if bootstrap == nil {
		bootstrap = func() []peer.AddrInfo { return nil }
	}
	d, err := dht.New(h,
		dht.ProtocolPrefix(dhtPrefix),
		dht.Mode(mode),
		dht.Validator(record.NamespacedValidator{dhtSpace: dhtValidator{member, keys}}),
		dht.DisableProviders(),
		dht.MaxRecordAge(MaxTTL),
		dht.ValueGCInterval(dhtSweep),
		dht.BootstrapPeersFunc(bootstrap),
		dht.RoutingTableFilter(func(_ any, p peer.ID) bool { return member(p) }),
		dht.QueryFilter(func(_ any, info peer.AddrInfo) bool { return member(info.ID) }),
	)
	if err != nil {
		return nil, fmt.Errorf("start the DHT: %w", err)
	}
	return d, nil
}

func dhtKey(ns string) string { return "/" + dhtSpace + "/" + ns }

// dhtValidator decides what a DHT server stores and what a client believes.
type dhtValidator struct {
	member func(peer.ID) bool
	keys   func() [][]byte
}

// Validate takes a record that its signer, a member, placed under its own
// namespace and that has not expired.
func (v dhtValidator) Validate(key string, value []byte) error {
	ns, ok := strings.CutPrefix(key, "/"+dhtSpace+"/")
	if !ok {
		return errNamespace
	}
	rec, signer, err := openRecord(value)
	if err != nil {
		return err
	}
	if err := rec.check(rec.Network, ns, time.Now()); err != nil {
		return err
	}
	if !v.member(signer) {
		return errPeer
	}
	for _, k := range boundKeys(v.keys()) {
		if Namespace(k, signer) == ns {
			return nil
		}
	}
	return errNamespace
}

// Select prefers the record issued last, and of two issued at once the one
// whose bytes sort higher, so that all agree.
func (v dhtValidator) Select(_ string, values [][]byte) (int, error) {
	best, bestRec := -1, (*addressRecord)(nil)
	for i, b := range values {
		rec, _, err := openRecord(b)
		if err != nil {
			continue
		}
		if best < 0 || rec.Issued.After(bestRec.Issued) ||
			(rec.Issued.Equal(bestRec.Issued) && string(b) > string(values[best])) {
			best, bestRec = i, rec
		}
	}
	if best < 0 {
		return 0, errMalformed
	}
	return best, nil
}

// dhtPut stores a sealed record. A server that knows no other one keeps it
// itself, which is enough: whoever asks, asks it.
func dhtPut(ctx context.Context, d *dht.IpfsDHT, ns string, sealed []byte) error {
	alone := d.RoutingTable().Size() == 0
	if alone && d.Mode() != dht.ModeServer {
		return errNoServer
	}
	ctx, cancel := context.WithTimeout(ctx, dhtTimeout)
	defer cancel()
	err := d.PutValue(ctx, dhtKey(ns), sealed)
	if alone && errors.Is(err, kb.ErrLookupFailure) {
		return nil
	}
	return err
}

// dhtFind looks up the record under ns and hands on each better one until the
// lookup has ended. It never dials the peer that is looked for, which is why
// this is not FindPeer.
func dhtFind(ctx context.Context, d *dht.IpfsDHT, ns string, give func(sealed []byte) bool) error {
	if d.RoutingTable().Size() == 0 && d.Mode() != dht.ModeServer {
		return errNoServer
	}
	ctx, cancel := context.WithTimeout(ctx, dhtTimeout)
	defer cancel()
	values, err := d.SearchValue(ctx, dhtKey(ns), dht.Quorum(1))
	if err != nil {
		return err
	}
	for v := range values {
		if !give(v) {
			return nil
		}
	}
	return ctx.Err()
}
