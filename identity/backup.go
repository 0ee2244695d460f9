package identity

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

// A backup is text: a PEM block around
//
//	1 (1) ‖ salt (16) ‖ nonce (24) ‖ XChaCha20-Poly1305 under scrypt(passphrase, salt)
//
// of the network key, the roster and the invites.
const (
	backupType    = "FWD OWNER BACKUP"
	backupVersion = 1
	backupSalt    = 16
	backupHead    = 1 + backupSalt + chacha20poly1305.NonceSizeX
	maxBackup     = 64 << 20

	// scryptN is 2^17 (r 8, p 1: 128 MiB and some 0.4 s a guess), what OWASP's password
	// storage sheet asks for. Fixed by the version, so a file cannot ask for more.
	scryptN, scryptR, scryptP = 1 << 17, 8, 1
)

// ErrPassphrase says that a backup does not open: the passphrase is wrong, or the file
// was altered. Which of the two cannot be told.
var ErrPassphrase = errors.New("wrong passphrase, or a damaged backup")

type backupText struct {
	Key     []byte     `json:"key"`    // libp2p's encoding
	Roster  []byte     `json:"roster"` // envelope
	Invites ledgerText `json:"invites"`
}

// Export is the owner's backup, locked by a passphrase. It is as precious as the
// network key.
func (o *Owner) Export(passphrase string) ([]byte, error) {
	if passphrase == "" {
		return nil, errors.New("export: an empty passphrase protects nothing")
	}
	o.mu.Lock()
	cur, l := o.book.Current(), o.ledger
	o.mu.Unlock()
	if cur == nil || cur.Network != o.Network() {
		return nil, fmt.Errorf("export: %w", ErrNoNetwork)
	}
	t := backupText{Roster: cur.Envelope, Invites: l.text()}
	var err error
	if t.Key, err = crypto.MarshalPrivateKey(o.key); err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	plain, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	head := make([]byte, backupHead)
	rand.Read(head)
	head[0] = backupVersion
	locked, err := lockBackup(head, plain, passphrase)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: backupType, Bytes: locked}), nil
}

func lockBackup(head, plain []byte, passphrase string) ([]byte, error) {
	box, err := backupBox(head, passphrase)
	if err != nil {
		return nil, err
	}
	return box.Seal(bytes.Clone(head), head[1+backupSalt:], plain, head), nil
}

func backupBox(head []byte, passphrase string) (cipher.AEAD, error) {
	key, err := scrypt.Key([]byte(passphrase), head[1:1+backupSalt], scryptN, scryptR, scryptP, chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return chacha20poly1305.NewX(key)
}

func unlockBackup(blob []byte, passphrase string) ([]byte, error) {
	if len(blob) > maxBackup {
		return nil, ErrTooLarge
	}
	block, _ := pem.Decode(blob)
	if block == nil || block.Type != backupType || len(block.Bytes) < backupHead {
		return nil, errors.New("not a backup made by fwd owner export")
	}
	if block.Bytes[0] != backupVersion {
		return nil, fmt.Errorf("backup version %d: %w", block.Bytes[0], ErrNewer)
	}
	head := block.Bytes[:backupHead]
	box, err := backupBox(head, passphrase)
	if err != nil {
		return nil, err
	}
	plain, err := box.Open(nil, head[1+backupSalt:], block.Bytes[backupHead:], head)
	if err != nil {
		return nil, ErrPassphrase
	}
	return plain, nil
}

// Import makes this machine the owner by a backup: the newest roster at hand, the
// backup's or the book's, signed anew for the next term, which no later epoch of the
// old owner can outdo. Adopt what the peers hold before, if they can be reached; what
// turns up afterwards is merged (Owner.Adopt). Invites that were still open are
// ended, since a backup cannot know whether they were used.
//
// A book of another network is ErrJoined, a key of another network fs.ErrExist.
func Import(dir string, book *Book, blob []byte, passphrase string, self peer.ID, now time.Time) (*Owner, error) {
	o, err := restore(dir, book, blob, passphrase, self, now)
	if err != nil {
		return nil, fmt.Errorf("import owner: %w", err)
	}
	return o, nil
}

func restore(dir string, book *Book, blob []byte, passphrase string, self peer.ID, now time.Time) (*Owner, error) {
	plain, err := unlockBackup(blob, passphrase)
	if err != nil {
		return nil, err
	}
	key, base, l, err := parseBackup(plain)
	if err != nil {
		return nil, err
	}
	if cur := book.Current(); cur != nil {
		if cur.Network != base.Network {
			return nil, fmt.Errorf("%w: %s", ErrJoined, cur.Name)
		}
		if cur.For == "" && cur.compare(base.Roster) > 0 {
			base = cur
		}
	}
	return nextTerm(dir, book, key, base, l, self, now)
}

func parseBackup(plain []byte) (crypto.PrivKey, *Sealed, ledger, error) {
	var t backupText
	if err := parseStrict(plain, &t); err != nil {
		return nil, nil, ledger{}, err
	}
	key, err := crypto.UnmarshalPrivateKey(t.Key)
	if err == nil {
		err = checkKey(key)
	}
	if err != nil {
		return nil, nil, ledger{}, err
	}
	id, err := networkID(key)
	if err != nil {
		return nil, nil, ledger{}, err
	}
	s, err := Open(t.Roster, id)
	if err != nil {
		return nil, nil, ledger{}, err
	}
	l, err := t.Invites.ledger()
	return key, s, l, err
}
