package pgbounce

import (
	"encoding/binary"
	"fmt"
)

// headerSize is that of a message: its kind, and its length without the kind.
const headerSize = 5

const (
	// maxMessage is the longest message PostgreSQL takes, and maxSmall the
	// longest of the kinds that carry no data.
	maxMessage = 1<<30 - 1
	maxSmall   = 10_000
	// maxStatement is the longest Parse that is kept to be sent again. A longer
	// unnamed one passes, for its own transaction.
	maxStatement = 1 << 20
	// maxNames is how long the names in a Bind, Describe or Close may be.
	maxNames = 8 << 10
)

// messageSize returns the size of the message that begins p, its header
// included.
func messageSize(p []byte) int { return 1 + int(int32(binary.BigEndian.Uint32(p[1:]))) }

// cstring returns the string at the begin of p and what follows it.
func cstring(p []byte) (s, rest []byte, ok bool) {
	for i, c := range p {
		if c == 0 {
			return p[:i], p[i+1:], true
		}
	}
	return nil, p, false
}

func appendHeader(p []byte, kind byte, body int) []byte {
	return binary.BigEndian.AppendUint32(append(p, kind), uint32(4+body))
}

func appendQuery(p []byte, sql string) []byte {
	return append(append(appendHeader(p, 'Q', len(sql)+1), sql...), 0)
}

func appendParse(p []byte, name, body string) []byte {
	return append(append(append(appendHeader(p, 'P', len(name)+1+len(body)), name...), 0), body...)
}

func appendExecute(p []byte, portal string) []byte {
	return append(append(appendHeader(p, 'E', len(portal)+1+4), portal...), 0, 0, 0, 0, 0)
}

func appendCloseStatement(p []byte, name string) []byte {
	return append(append(append(appendHeader(p, 'C', 1+len(name)+1), 'S'), name...), 0)
}

func appendTag(p []byte, tag string) []byte {
	return append(append(appendHeader(p, 'C', len(tag)+1), tag...), 0)
}

func appendReady(p []byte, status byte) []byte { return append(appendHeader(p, 'Z', 1), status) }

func appendParameter(p []byte, name, value string) []byte {
	p = appendHeader(p, 'S', len(name)+len(value)+2)
	return append(append(append(append(p, name...), 0), value...), 0)
}

var (
	parseComplete = appendHeader(nil, '1', 0)
	bindComplete  = appendHeader(nil, '2', 0)
	closeComplete = appendHeader(nil, '3', 0)
	noData        = appendHeader(nil, 'n', 0)
	readyIdle     = appendReady(nil, 'I')
)

// A wireError is an ErrorResponse: one of PostgreSQL's, or one of ours.
type wireError struct {
	severity string // ERROR or FATAL
	code     string
	message  string
	raw      []byte // the whole message, if it is PostgreSQL's
}

func (e *wireError) Error() string { return fmt.Sprintf("%s: %s (%s)", e.severity, e.message, e.code) }

func fatal(code, format string, args ...any) *wireError {
	return &wireError{severity: "FATAL", code: code, message: fmt.Sprintf(format, args...)}
}

// parseError reads an ErrorResponse's body.
func parseError(body []byte) *wireError {
	e := &wireError{severity: "ERROR"}
	for len(body) > 1 {
		value, rest, ok := cstring(body[1:])
		if !ok {
			break
		}
		switch body[0] {
		case 'V':
			e.severity = string(value)
		case 'C':
			e.code = string(value)
		case 'M':
			e.message = string(value)
		}
		body = rest
	}
	return e
}

// appendError appends an ErrorResponse, or with the kind 'N' a notice.
func appendError(p []byte, kind byte, severity, code, message string) []byte {
	fields := make([]byte, 0, 64+len(message))
	for _, f := range []struct {
		field byte
		text  string
	}{{'S', severity}, {'V', severity}, {'C', code}, {'M', message}} {
		fields = append(append(append(fields, f.field), f.text...), 0)
	}
	return append(append(appendHeader(p, kind, len(fields)+1), fields...), 0)
}

// renameError returns an ErrorResponse with the client's name of a statement.
func renameError(message []byte, n *named) []byte {
	var fields []byte
	body := message[headerSize:]
	for len(body) > 1 {
		value, rest, ok := cstring(body[1:])
		if !ok {
			return message
		}
		text := string(value)
		if body[0] == 'M' {
			text = asClient(text, n)
		}
		fields = append(append(append(fields, body[0]), text...), 0)
		body = rest
	}
	return append(append(appendHeader(nil, 'E', len(fields)+1), fields...), 0)
}
