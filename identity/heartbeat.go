package identity

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
)

const (
	// HeartbeatEvery is 1 h: how often the owner says which epoch is current.
	HeartbeatEvery = time.Hour
	// StaleWarn is 48 h: a peer without a fresher word from the owner warns that
	// a revocation may be kept from it.
	StaleWarn = 48 * time.Hour
	// StaleRefuse is 72 h: a strict peer then refuses new sessions.
	StaleRefuse = 72 * time.Hour

	maxHeartbeat    = 4 << 10 // 4 KiB: an envelope of about 350 bytes
	heartbeatDomain = "fwd/heartbeat/1"
)

// heartbeat is the owner's word that (term, epoch) was current at a time.
type heartbeat struct {
	network     NetworkID
	term, epoch uint64
	at          time.Time
	envelope    []byte
}

type heartbeatText struct {
	V       int       `json:"v"`
	Network NetworkID `json:"network"`
	Term    uint64    `json:"term"`
	Epoch   uint64    `json:"epoch"`
	At      int64     `json:"at"`
}

func sealHeartbeat(r *Roster, at time.Time, network crypto.PrivKey) (*heartbeat, error) {
	payload, err := json.Marshal(heartbeatText{V: 1, Network: r.Network, Term: r.Term, Epoch: r.Epoch, At: unixMilli(at)})
	if err != nil {
		return nil, err
	}
	envelope, err := sealBytes(heartbeatDomain, payload, network)
	if err != nil {
		return nil, err
	}
	return openHeartbeat(envelope, r.Network)
}

func openHeartbeat(envelope []byte, want NetworkID) (*heartbeat, error) {
	payload, signer, err := openBytes(heartbeatDomain, envelope, maxHeartbeat, want)
	if err != nil {
		return nil, fmt.Errorf("open heartbeat: %w", err)
	}
	var t heartbeatText
	if err := json.Unmarshal(payload, &t); err != nil {
		return nil, fmt.Errorf("open heartbeat: %w", err)
	}
	if t.V != 1 {
		return nil, fmt.Errorf("open heartbeat: version %d: %w", t.V, ErrNewer)
	}
	if t.Network != signer || t.At <= 0 {
		return nil, fmt.Errorf("open heartbeat: network %.80q at %d: %w", t.Network, t.At, ErrSeal)
	}
	return &heartbeat{network: signer, term: t.Term, epoch: t.Epoch, at: fromUnixMilli(t.At), envelope: envelope}, nil
}

// compare orders a heartbeat against a roster by (term, epoch).
func (h *heartbeat) compare(r *Roster) int {
	return compareVersion(h.term, h.epoch, r.Term, r.Epoch)
}
