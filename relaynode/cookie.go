package relaynode

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"github.com/libp2p/go-libp2p/core/peer"
)

// cookies makes and reads the positions that discover hands out. They are
// stateless: what a client brings back is checked, not looked up.
type cookies struct{ key [32]byte }

const (
	positionSize = 8
	cookieSize   = positionSize + 16
)

func newCookies() (*cookies, error) {
	c := new(cookies)
	_, err := rand.Read(c.key[:])
	return c, err
}

// make says "asker has seen all under ns up to position".
func (c *cookies) make(asker peer.ID, ns string, position uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, positionSize+sha256.Size), position)
	mac := hmac.New(sha256.New, c.key[:])
	mac.Write(appendBytes(appendBytes([]byte("cookie"), []byte(asker)), []byte(ns)))
	mac.Write(b)
	return mac.Sum(b)[:cookieSize]
}

// read returns the position; no cookie stands for the beginning. ok is false
// unless make made it for the same asker and namespace.
func (c *cookies) read(cookie []byte, asker peer.ID, ns string) (position uint64, ok bool) {
	if len(cookie) == 0 {
		return 0, true
	}
	if len(cookie) != cookieSize {
		return 0, false
	}
	position = binary.BigEndian.Uint64(cookie)
	return position, hmac.Equal(cookie, c.make(asker, ns, position))
}
