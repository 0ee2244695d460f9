package identity

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrTooLarge says that something from outside exceeds its stated limit.
var ErrTooLarge = errors.New("too large")

// maxMsg is 16 MiB: no message is longer, whatever limit its reader states.
const maxMsg = 16 << 20

// WriteMsg writes v as one message: its length in 4 bytes, big-endian, then JSON.
func WriteMsg(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	if len(body) > maxMsg {
		return fmt.Errorf("write message of %d bytes: %w", len(body), ErrTooLarge)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

// ReadMsg reads one message of at most max bytes into v. Memory grows with what
// has arrived, never with what was announced. Unknown fields are ignored, so
// that a newer fwd may say more. io.EOF means that no message began.
func ReadMsg(r io.Reader, max int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			return err
		}
		return fmt.Errorf("read message: %w", err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if int64(size) > int64(max) || size > maxMsg {
		return fmt.Errorf("read message of %d bytes, at most %d are taken: %w", size, max, ErrTooLarge)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(size)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read message: %w", err)
	}
	if err := json.Unmarshal(body.Bytes(), v); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	return nil
}

// MaxRosterMsg is 4 MiB: a roster of 1 MiB and as much again of guests' slices,
// both in base64, with room to spare.
const MaxRosterMsg = 4 << 20

// RosterMsg is what peers tell each other about the network when they connect.
// Term and Epoch say what the sender holds; the rest is handed over byte for byte
// to those who may have it.
type RosterMsg struct {
	Term      uint64 `json:"term"`
	Epoch     uint64 `json:"epoch"`
	Roster    []byte `json:"roster,omitempty"`
	Heartbeat []byte `json:"heartbeat,omitempty"`
	Slices    Slices `json:"slices,omitempty"`
}

// Slices are guests' slices in a message.
type Slices [][]byte

// UnmarshalJSON refuses more slices than a network has.
func (s *Slices) UnmarshalJSON(data []byte) (err error) {
	*s, err = ReadList[[]byte](data, maxSlices)
	return err
}

// ReadList reads a JSON list of at most max values (else ErrTooLarge). It is for lists
// from outside: an empty value takes three bytes there, and a hundred times that here.
func ReadList[T any](data []byte, max int) ([]T, error) {
	in := json.NewDecoder(bytes.NewReader(data))
	switch begin, err := in.Token(); {
	case err != nil || begin == nil: // null
		return nil, err
	case begin != json.Delim('['):
		return nil, fmt.Errorf("read list: it begins with %.40q", fmt.Sprint(begin))
	}
	list := []T{}
	for in.More() {
		if len(list) == max {
			return nil, fmt.Errorf("read list of more than %d: %w", max, ErrTooLarge)
		}
		var v T
		if err := in.Decode(&v); err != nil {
			return nil, fmt.Errorf("read list: %w", err)
		}
		list = append(list, v)
	}
	return list, nil
}

// MaxServicesMsg is 256 KiB: a thousand services at 100 bytes, with room to spare.
const MaxServicesMsg = 256 << 10

// ServicesMsg lists the services of one machine that the asker may use.
type ServicesMsg struct {
	Services []ServiceInfo `json:"services"`
}

// ServiceInfo is one service as its users see it. The target stays private but
// for its port, which is where a user's own listener would like to be.
type ServiceInfo struct {
	Name string `json:"name"`
	Port uint16 `json:"port,omitempty"` // 0: the target has none
	Last uint16 `json:"last,omitempty"` // of a range of ports that begins with Port
	UDP  bool   `json:"udp,omitempty"`  // it takes datagrams; the same name may be there for TCP too
}

// Check refuses a list that no fwd would write.
func (m ServicesMsg) Check() error {
	if len(m.Services) > maxServices {
		return fmt.Errorf("services message with %d services: %w", len(m.Services), ErrTooLarge)
	}
	for _, s := range m.Services {
		if err := CheckName(s.Name); err != nil {
			return fmt.Errorf("services message: %w", err)
		}
		if s.Last != 0 && s.Last <= s.Port {
			return fmt.Errorf("services message: ports %d to %d of %q", s.Port, s.Last, s.Name)
		}
	}
	return nil
}
