package discovery

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Namespace is the name under which peer p announces itself and is looked up:
// base32(HMAC-SHA256(key, "peer" ‖ p)) in 52 lower-case characters. Whoever
// does not hold the network's discovery key cannot tell whose it is.
func Namespace(key []byte, p peer.ID) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("peer"))
	mac.Write([]byte(p))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(mac.Sum(nil)))
}
