package session

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	openVersion = 1
	maxOpen     = 512 // bytes after the length
	minOpen     = 12  // the fixed fields and one byte of name
	maxService  = 255 // bytes in a service's name

	refusal = 0x100 // yamux error codes from here on carry a Code
)

type sessionID [8]byte

func (id sessionID) String() string { return hex.EncodeToString(id[:]) }

// open is the first message of each session, docs/session.md "Open".
type open struct {
	id      sessionID
	service string
}

var errOpen = errors.New("open message out of range")

func (o *open) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(11+len(o.service)))
	b = append(b, openVersion, 0)
	b = append(b, o.id[:]...)
	b = append(b, byte(len(o.service)))
	return append(b, o.service...)
}

// readOpen takes exactly one open from r.
func readOpen(r io.Reader) (*open, error) {
	var b [maxOpen]byte
	// A length of up to 512 is one or two bytes.
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return nil, err
	}
	n := int(b[0])
	if n >= 0x80 {
		if _, err := io.ReadFull(r, b[1:2]); err != nil {
			return nil, err
		}
		v, _, err := shortestUvarint(b[:2])
		if err != nil || v > maxOpen {
			return nil, errOpen
		}
		n = int(v)
	}
	if n < minOpen {
		return nil, errOpen
	}
	if _, err := io.ReadFull(r, b[:n]); err != nil {
		return nil, err
	}
	if b[0] != openVersion {
		return nil, fmt.Errorf("%w: version %d", errOpen, b[0])
	}
	m := int(b[10])
	if m == 0 || 11+m > n {
		return nil, errOpen
	}
	o := &open{id: sessionID(b[2:10]), service: string(b[11 : 11+m])}
	if !validService(o.service) {
		return nil, errOpen
	}
	return o, nil
}

// validService says whether a name may be sent: not empty, UTF-8, nothing that would spoil a log line.
func validService(s string) bool {
	return len(s) > 0 && len(s) <= maxService && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
