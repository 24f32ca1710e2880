package objects

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"

	corev1 "k8s.io/api/core/v1"
)

const secretKind = "Secret"

// SlimSecret drops all data but the certificate and the key of a Secret of type kubernetes.io/tls: what is not used is
// not held. It modifies the Secret.
func SlimSecret(s *corev1.Secret) {
	s.StringData = nil
	var kept map[string][]byte
	if s.Type == corev1.SecretTypeTLS {
		kept = make(map[string][]byte, 2)
		for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if value, ok := s.Data[key]; ok {
				kept[key] = value
			}
		}
	}
	s.Data = kept
}

// secretLine is a line that makes an object, or an item of a List, a Secret.
var secretLine = regexp.MustCompile(`kind["']?\s*:\s*["']?Secret\b`)

// mayBeSecret says whether the text, which cannot be parsed, looks like a Secret.
func (d document) mayBeSecret() bool { return secretLine.Match(d.text) }

// wrongType is the error of a field of another type than the manifest's; of a number it quotes the value.
var wrongType = regexp.MustCompile(`^json: cannot unmarshal (\w+).* into Go struct field Secret\.(\S+) of type (\S+)$`)

// withoutData rewrites an error of decoding a Secret, which may quote what it decodes.
func withoutData(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[base64.CorruptInputError](err); ok {
		return errors.New("data must be base64: encode it, or use stringData")
	}
	if m := wrongType.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s must be of type %s, not %s: quote it if it is a string", m[2], m[3], m[1])
	}
	return errors.New("it cannot be decoded as a Secret")
}
