package discovery

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-varint"
)

// Limits of a record, see docs/rendezvous.md.
const (
	// MaxAddrs is the largest number of addresses in a record and in any answer
	// of a Finder: a dialer tries them all, so more would only delay it.
	MaxAddrs = 32
	// MaxTTL is the longest life of a record.
	MaxTTL = 2 * time.Hour

	maxRecord    = 2048             // bytes of a sealed record
	maxAddr      = 256              // bytes of one binary multiaddr
	maxNamespace = 128              // bytes; ours have 52
	maxNetwork   = 128              // bytes; a network's ID has 52
	clockSkew    = 10 * time.Minute // by how much two peers' clocks may differ

	recordVersion = 1
	recordDomain  = "fwd-address-record"
	recordType    = "/fwd/address-record/1"
)

// What is wrong with a record that was offered to us.
var (
	errMalformed = errors.New("malformed")
	errNetwork   = errors.New("record is of another network")
	errNamespace = errors.New("record is of another namespace")
	errPeer      = errors.New("record is signed by another peer")
	errExpired   = errors.New("record has expired")
	errTooLong   = errors.New("record expires too late")
)

// addressRecord is what a peer signs: reach me at these addresses, in this
// network, under this namespace, until then. It implements record.Record.
type addressRecord struct {
	Network   string
	Namespace string
	Issued    time.Time // whole milliseconds
	Expires   time.Time // whole milliseconds
	Addrs     []ma.Multiaddr
}

func (*addressRecord) Domain() string { return recordDomain }
func (*addressRecord) Codec() []byte  { return []byte(recordType) }

// MarshalRecord prints the payload. It refuses what UnmarshalRecord would.
func (r *addressRecord) MarshalRecord() ([]byte, error) {
	b := varint.ToUvarint(recordVersion)
	b = appendBytes(b, []byte(r.Network))
	b = appendBytes(b, []byte(r.Namespace))
	b = append(b, varint.ToUvarint(uint64(r.Issued.UnixMilli()))...)
	b = append(b, varint.ToUvarint(uint64(r.Expires.UnixMilli()))...)
	b = append(b, varint.ToUvarint(uint64(len(r.Addrs)))...)
	for _, a := range r.Addrs {
		b = appendBytes(b, a.Bytes())
	}
	if err := new(addressRecord).UnmarshalRecord(b); err != nil {
		return nil, err
	}
	return b, nil
}

// UnmarshalRecord parses the payload; it accepts one form only, so that what
// it parsed prints as the same bytes.
func (r *addressRecord) UnmarshalRecord(b []byte) error {
	in := parser{rest: b}
	if v := in.uvarint(); in.err == nil && v != recordVersion {
		return fmt.Errorf("record of version %d, want %d", v, recordVersion)
	}
	r.Network = string(in.bytes(maxNetwork))
	r.Namespace = string(in.bytes(maxNamespace))
	issued, expires := in.uvarint(), in.uvarint()
	count := in.uvarint()
	if in.err != nil || r.Namespace == "" || issued >= expires || count > MaxAddrs {
		return errMalformed
	}
	r.Issued, r.Expires = time.UnixMilli(int64(issued)), time.UnixMilli(int64(expires))
	r.Addrs = make([]ma.Multiaddr, 0, count)
	for range count {
		a, ok := parseAddr(in.bytes(maxAddr))
		if !ok {
			return errMalformed
		}
		r.Addrs = append(r.Addrs, a)
	}
	return in.end()
}

// sealRecord signs r, leaving out addresses from the end until it fits.
func sealRecord(r addressRecord, key crypto.PrivKey) ([]byte, error) {
	r.Addrs = boundAddrs(r.Addrs)
	for {
		env, err := record.Seal(&r, key)
		if err != nil {
			return nil, err
		}
		b, err := env.Marshal()
		if err != nil {
			return nil, err
		}
		if len(b) <= maxRecord {
			return b, nil
		}
		if len(r.Addrs) == 0 {
			return nil, errMalformed
		}
		r.Addrs = r.Addrs[:len(r.Addrs)-1]
	}
}

// openRecord checks the form and the signature of a sealed record and says who
// signed it. What it is good for is left to check.
func openRecord(sealed []byte) (*addressRecord, peer.ID, error) {
	if len(sealed) > maxRecord {
		return nil, "", errMalformed
	}
	r := new(addressRecord)
	env, err := record.ConsumeTypedEnvelope(sealed, r)
	if err != nil {
		return nil, "", err
	}
	if string(env.PayloadType) != recordType {
		return nil, "", errMalformed
	}
	p, err := peer.IDFromPublicKey(env.PublicKey)
	if err != nil {
		return nil, "", err
	}
	return r, p, nil
}

// check says whether the record answers a question about namespace ns of a
// network asked at now.
func (r *addressRecord) check(network, ns string, now time.Time) error {
	switch {
	case r.Network != network:
		return errNetwork
	case r.Namespace != ns:
		return errNamespace
	case !now.Before(r.Expires):
		return errExpired
	case r.Expires.After(now.Add(MaxTTL + clockSkew)):
		return errTooLong
	}
	return nil
}

// boundAddrs returns the first MaxAddrs different addresses that fit a record.
func boundAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	seen := make(map[string]bool, min(len(addrs), MaxAddrs))
	out := make([]ma.Multiaddr, 0, min(len(addrs), MaxAddrs))
	for _, a := range addrs {
		if len(out) == MaxAddrs {
			break
		}
		if len(a) == 0 || len(a.Bytes()) > maxAddr || seen[string(a.Bytes())] {
			continue
		}
		seen[string(a.Bytes())] = true
		out = append(out, a)
	}
	return out
}

// parseAddr parses one binary multiaddr; ok is false unless it prints as the
// same bytes.
func parseAddr(b []byte) (a ma.Multiaddr, ok bool) {
	if len(b) == 0 || len(b) > maxAddr {
		return nil, false
	}
	a, err := ma.NewMultiaddrBytes(b)
	if err != nil || string(a.Bytes()) != string(b) {
		return nil, false
	}
	return a, true
}
