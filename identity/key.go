package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// maxKeyFile is 4 KiB: a key file holds a comment and one line of 92 characters.
const maxKeyFile = 4 << 10

// CreateKey makes a new Ed25519 key and writes it to path (0600). It never
// overwrites: if the file exists the error is fs.ErrExist.
func CreateKey(path string) (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", path, err)
	}
	text, err := formatKey(key)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", path, err)
	}
	if err := createFile(path, text, 0o600); err != nil {
		return nil, err
	}
	return key, nil
}

// LoadKey reads the key that CreateKey wrote. A file that is damaged, not an
// Ed25519 key or open to other users is refused with the mend, and kept.
func LoadKey(path string) (crypto.PrivKey, error) {
	data, err := readPrivate(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, &DamagedError{path, err}
	}
	return key, nil
}

// LoadOrCreateKey loads the key at path, or makes one where there is none.
func LoadOrCreateKey(path string) (key crypto.PrivKey, created bool, err error) {
	key, err = LoadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	key, err = CreateKey(path)
	if errors.Is(err, fs.ErrExist) { // someone else was first: theirs counts
		key, err = LoadKey(path)
		return key, false, err
	}
	return key, err == nil, err
}

// formatKey writes a key file: a comment with the public half, and one line with
// libp2p's encoding of the private key in base64.
func formatKey(key crypto.PrivKey) ([]byte, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	raw, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "# fwd private key of %s\n%s\n", id, base64.StdEncoding.EncodeToString(raw)), nil
}

func parseKey(text []byte) (crypto.PrivKey, error) {
	var line string
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		if line != "" {
			return nil, errors.New("more than one key in the file")
		}
		line = l
	}
	if line == "" {
		return nil, errors.New("no key in the file")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(line)
	if err != nil {
		return nil, fmt.Errorf("not base64: %w", err)
	}
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("not a private key: %w", err)
	}
	return key, checkKey(key)
}

// checkKey wants Ed25519 with the public half belonging to the private one; a
// key with a flipped bit would sign what nobody can verify.
func checkKey(key crypto.PrivKey) error {
	if _, ok := key.(*crypto.Ed25519PrivateKey); !ok {
		return fmt.Errorf("a key of type %v, not Ed25519", key.Type())
	}
	raw, err := key.Raw()
	if err != nil {
		return err
	}
	if len(raw) != ed25519.PrivateKeySize || !bytes.Equal(ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize]), raw) {
		return errors.New("the two halves of the key do not match")
	}
	return nil
}

// ed25519Public returns the 32 bytes of p's key, which an Ed25519 peer ID contains.
func ed25519Public(p peer.ID) ([]byte, crypto.PubKey, error) {
	pub, err := p.ExtractPublicKey()
	if err != nil {
		return nil, nil, fmt.Errorf("peer %s: %w", p, err)
	}
	if _, ok := pub.(*crypto.Ed25519PublicKey); !ok {
		return nil, nil, fmt.Errorf("peer %s: not an Ed25519 key", p)
	}
	raw, err := pub.Raw()
	return raw, pub, err
}

func peerFromPublic(raw []byte) (peer.ID, error) {
	pub, err := crypto.UnmarshalEd25519PublicKey(bytes.Clone(raw))
	if err != nil {
		return "", err
	}
	return peer.IDFromPublicKey(pub)
}

// parsePeer reads the text form of an Ed25519 peer ID, and no other key's.
func parsePeer(s string) (peer.ID, error) {
	p, err := peer.Decode(s)
	if err != nil {
		return "", fmt.Errorf("%q is no peer ID: %w", s, err)
	}
	if p.String() != s {
		return "", fmt.Errorf("%q is not how peer %s is written", s, p)
	}
	if _, _, err := ed25519Public(p); err != nil {
		return "", err
	}
	return p, nil
}
