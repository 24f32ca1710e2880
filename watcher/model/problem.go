package model

import (
	"cmp"
	"fmt"
	"slices"
)

// A Reason is the CamelCase word that names a kind of Problem; it is a metric label and an Event reason.
type Reason string

// The reasons.
const (
	ReasonInvalidField       Reason = "InvalidField"       // a value that the API server would not have taken, or that cannot be read
	ReasonUnsupported        Reason = "Unsupported"        // a valid value that Sallyport does not honour
	ReasonServiceNotFound    Reason = "ServiceNotFound"    // a route names a Service that does not exist
	ReasonPortNotFound       Reason = "PortNotFound"       // a route names a port that its Service does not have
	ReasonNoNodePort         Reason = "NoNodePort"         // reach nodes, and the service port has no nodePort
	ReasonDuplicateRoute     Reason = "DuplicateRoute"     // an older object has the same host and path
	ReasonNoAddressRequested Reason = "NoAddressRequested" // a LoadBalancer Service that asks for no address
	ReasonAddressNotInPool   Reason = "AddressNotInPool"   // an address asked for that no pool contains
	ReasonAddressInUse       Reason = "AddressInUse"       // an address asked for that an older Service holds
	ReasonPortConflict       Reason = "PortConflict"       // a NodePort that the edge listens on itself, or that an older Service has
	ReasonServedByOther      Reason = "ServedByOther"      // a Service whose status another controller has written
	ReasonAddressTaken       Reason = "AddressTaken"       // an address or network that is the edge's own, a node's or a gateway's
	ReasonSecretNotFound     Reason = "SecretNotFound"     // a TLS Secret that does not exist
	ReasonSecretForbidden    Reason = "SecretForbidden"    // a TLS Secret that this edge may not read
	ReasonInvalidCertificate Reason = "InvalidCertificate" // a TLS Secret without a usable certificate and key, or for other hosts
	ReasonDuplicateHost      Reason = "DuplicateHost"      // an older object has another certificate for the same host
	ReasonKindForbidden      Reason = "KindForbidden"      // a kind that the API server does not let this edge list and watch (403)
	ReasonKindNotFound       Reason = "KindNotFound"       // a kind that the API server does not know (404)
	ReasonClusterChanged     Reason = "ClusterChanged"     // the API server is of another cluster than the last-good file
	ReasonStatusForbidden    Reason = "StatusForbidden"    // status or Events that the API server does not let this edge write
)

// A Problem is an object or field that cannot be honoured, with its reason. The rest of the object, and every
// other object, is served.
type Problem struct {
	Object  ObjectRef `json:"object"`
	Field   string    `json:"field,omitempty"` // path as in kubectl explain, such as "spec.rules[0].http.paths[1].backend.service.port.name"
	Reason  Reason    `json:"reason"`
	Message string    `json:"message"` // what is wrong and what to do, for a person
}

// Compare orders by object, field, reason, message.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(p.Object.Compare(o.Object), cmp.Compare(p.Field, o.Field),
		cmp.Compare(p.Reason, o.Reason), cmp.Compare(p.Message, o.Message))
}

// MaxProblems is how many Problems are told of one object. Each is a line in the log of every edge, and an Event, of which only a
// few are sent in a second: one object must not drown what is wrong with the others.
const MaxProblems = 32

// FirstProblems orders Problems and drops repeats, in place. Of each object it keeps the first MaxProblems, and of the others one,
// which says that there are more. More may be added to the result, and it be called on that again.
func FirstProblems(all []Problem) []Problem {
	slices.SortFunc(all, Problem.Compare)
	all = slices.Compact(all)
	kept := all[:0]
	for rest := all; len(rest) > 0; {
		n := 1 // of one object
		for n < len(rest) && rest[n].Object == rest[0].Object {
			n++
		}
		kept, rest = append(kept, firstOfOne(rest[:n])...), rest[n:]
	}
	clear(all[len(kept):])
	return kept
}

// firstOfOne is FirstProblems of one object, which are ordered.
func firstOfOne(all []Problem) []Problem {
	if len(all) <= MaxProblems {
		return all
	}
	more := Problem{Object: all[0].Object, Reason: all[MaxProblems].Reason,
		Message: fmt.Sprintf("there are more than %d problems: solve these to be told the rest", MaxProblems)}
	if i := slices.IndexFunc(all, func(p Problem) bool { return p.Field == "" && p.Message == more.Message }); i >= 0 {
		more = all[i]
		all = slices.Delete(all, i, i+1)
	}
	all = append(all[:MaxProblems], more)
	slices.SortFunc(all, Problem.Compare)
	return all
}

// String gives "object: field: message (Reason)".
func (p Problem) String() string {
	s := p.Object.String() + ": "
	if p.Field != "" {
		s += p.Field + ": "
	}
	return s + p.Message + " (" + string(p.Reason) + ")"
}

// A PartialError is what a reconciler returns when a part of a snapshot could not be brought about, such as one port that
// another program has, and everything else was.
type PartialError struct{ Err error }

// Error gives the cause.
func (e *PartialError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *PartialError) Unwrap() error { return e.Err }

// Partial makes err a PartialError, and leaves nil as it is.
func Partial(err error) error {
	if err == nil {
		return nil
	}
	return &PartialError{err}
}
