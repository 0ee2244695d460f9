package punch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The wire of /fwd/punch/1, on a stream of the relayed connection. Each message is a uvarint length and
// as many bytes; the first of them is the kind.
//
//	initiator ▶ responder   report ‖ JSON
//	responder ▶ initiator   report ‖ JSON     or  busy
//	initiator ▶ responder   go                half a round trip before it begins itself
//
// Then both follow the plan; if it was in vain and wantFresh says so, the same again. The stream is closed when the
// side has done its part.
const (
	kindReport = 'r'
	kindBusy   = 'b' // a punch between us two is under way, and mine goes first
	kindGo     = 'g'
)

const maxMessage = maxReport + 1

func writeMessage(w io.Writer, kind byte, body []byte) error {
	b := binary.AppendUvarint(nil, uint64(len(body)+1))
	_, err := w.Write(append(append(b, kind), body...))
	return err
}

// readMessage reads byte by byte first: nothing beyond the message may be taken from the stream.
func readMessage(r io.Reader) (kind byte, body []byte, err error) {
	size, err := binary.ReadUvarint(oneByte{r})
	if err != nil {
		return 0, nil, err
	}
	if size == 0 || size > maxMessage {
		return 0, nil, fmt.Errorf("punch message of %d bytes; 1 to %d are taken", size, maxMessage)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return b[0], b[1:], nil
}

type oneByte struct{ io.Reader }

func (r oneByte) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}
